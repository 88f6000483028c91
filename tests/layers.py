"""Small layers, norms and stacks to test with, and the backends to test on."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import DEVICE
from torch import Tensor, nn

from acn_kernels import dispatch
from acn_kernels.connection import Connection

_AVAILABLE = dispatch.availability()


def _backend(name: str):
    runs, reason = _AVAILABLE[name]
    marks = [pytest.mark.skipif(not runs, reason=f"{name}: {reason}")]
    return pytest.param(name, marks=marks + [pytest.mark.triton] * (name == "triton"))


TORCH, TRITON, NATIVE = map(_backend, ("torch", "triton", "native"))
BACKENDS = [TORCH, TRITON, NATIVE]
COMPILED = [TRITON, NATIVE]


def device_of(backend: str) -> str:
    return "cpu" if backend == "native" else DEVICE


class Shift(nn.Module):
    """``tanh(weight * roll(norm(u)) + bias)``: cheap at any width, mixes neighbours.

    Weights and biases are such that an error shrinks on its way through a hundred layers: what a
    deep stack then shows is that of the connections.
    """

    def __init__(self, width: int, norm: str = "layernorm") -> None:
        super().__init__()
        self.norm = make_norm(norm, width)
        self.weight = nn.Parameter(torch.empty(width).uniform_(0.3, 0.7))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-1.0, 1.0))

    @property
    def entry_norms(self) -> tuple[nn.Module | None]:
        return (self.norm,)

    def body(self, u: Tensor) -> Tensor:
        return torch.tanh(self.weight * u.roll(1, -1) + self.bias)

    def forward(self, x: Tensor, connection: Connection | None = None) -> Tensor:
        return self.body(Connection.begin(connection).enter(x, self.norm))


class Opaque(nn.Module):
    """The same without an entry norm, and unknown to the stack."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).uniform_(0.3, 0.7))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-1.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.weight * x.roll(1, -1) + self.bias)


class Times(nn.Module):
    """x -> w x, a layer of the paper's 1D linear networks."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


NORMS = {
    "layernorm": lambda width: nn.LayerNorm(width),
    "layernorm-no-bias": lambda width: nn.LayerNorm(width, bias=False),
    "layernorm-bare": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "rmsnorm": lambda width: nn.RMSNorm(width, eps=1e-6),
    "rmsnorm-bare": lambda width: nn.RMSNorm(width, eps=1e-6, elementwise_affine=False),
    "none": lambda width: None,
}


def make_norm(name: str, width: int) -> nn.Module | None:
    """A norm whose weight and bias are random."""
    norm = NORMS[name](width)
    for parameter in () if norm is None else norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


def strided(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Random values with gaps between the rows and between the elements of a row."""
    wide = torch.randn(*shape[:-1], 2 * shape[-1] + 3, dtype=torch.float32, device=device)
    return wide.to(dtype)[..., 1 : 2 * shape[-1] + 1 : 2]


def padded(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Random values with gaps between the rows alone."""
    wide = torch.randn(*shape[:-1], shape[-1] + 3, dtype=torch.float32, device=device)
    return wide.to(dtype)[..., 1 : shape[-1] + 1]


def transposed(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Random values whose first two axes changed places."""
    flipped = torch.randn(shape[1], shape[0], *shape[2:], device=device).to(dtype)
    return flipped.transpose(0, 1)


def expanded(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """One random row, stride 0 along all other axes."""
    return torch.randn(shape[-1], device=device).to(dtype).expand(shape)


def packed(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


LAYOUTS = [packed, padded, strided, transposed, expanded]


def wide_copy(module):
    """A float64 copy on the CPU, without gradients: the same numbers, for the truth."""
    twin = copy.deepcopy(module).to("cpu", torch.float64)
    for parameter in twin.parameters():
        parameter.grad = None
    return twin


def leaf(x: Tensor) -> Tensor:
    """x itself, layout kept, as a leaf that takes a gradient."""
    return x.detach().requires_grad_()


def wide_leaf(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64).contiguous().requires_grad_()


def random_parameters(stack: nn.Module) -> nn.Module:
    """The stack in float64, with weights under which no term can hide."""
    for parameter in stack.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.4)
    return stack.double()
