"""Single operations against PyTorch's, each beside the copy bandwidth of the same run."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from acn_kernels import NormSpec, functional
from benchmarks.throughput.case import Case, Setting, Way, Ways

SHAPE = (65_536, 1024)  # N * D = 2^26: past every cache
TINY_SHAPE = (64, 128)
SOURCES = 13  # x_0 .. x_12 of a ViT-B


def _tensors(setting: Setting, count: int) -> list[Tensor]:
    shape = TINY_SHAPE if setting.tiny else SHAPE
    return [torch.randn(shape, device=setting.device, dtype=setting.dtype) for _ in range(count)]


def _norm(setting: Setting, width: int) -> tuple[Tensor, Tensor, NormSpec]:
    weight, bias = torch.randn(2, width, device=setting.device, dtype=setting.dtype)
    weight.requires_grad_()
    bias.requires_grad_()
    return weight, bias, NormSpec("layer", weight, bias)


def _words(what: str, x: Tensor) -> str:
    return f"{what}, {list(x.shape)}"


def copy(setting: Setting) -> Ways:
    """The ceiling: one read and one write."""
    source, target = _tensors(setting, 2)
    return Ways(
        {"copy": lambda: target.copy_(source)},
        _words("copy", source),
        bytes_moved=2 * source.nbytes,
    )


def fork_forward(setting: Setting) -> Ways:
    (x,) = _tensors(setting, 1)
    weight, bias, spec = _norm(setting, x.shape[-1])
    with torch.no_grad():
        weight, bias = weight.detach(), bias.detach()
    spec = NormSpec("layer", weight, bias)
    return Ways(
        {
            "torch layer_norm": lambda: F.layer_norm(x, x.shape[-1:], weight, bias),
            "fork": lambda: functional.norm(x, spec),
        },
        _words("norm forward", x),
        bytes_moved=2 * x.nbytes,
    )


def fork_backward(setting: Setting) -> Ways:
    """From dh and g to dx, dweight, dbias: the graph is built once, its backward is timed."""
    x, dh, g = _tensors(setting, 3)
    weight, bias, spec = _norm(setting, x.shape[-1])
    x.requires_grad_()
    plain = F.layer_norm(x, x.shape[-1:], weight, bias)
    h, term = functional.fork(x, spec)
    wanted = (x, weight, bias)

    def backward(outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Way:
        return lambda: torch.autograd.grad(outputs, wanted, gradients, retain_graph=True)[0]

    # x * 1 gives the plain graph a second consumer of x whose gradient is g.
    return Ways(
        {
            "torch layer_norm backward + add": backward((plain, x.view_as(x)), (dh, g)),
            "fork": backward((h, term.x), (dh, g)),
        },
        _words("norm backward with a direct gradient", x),
        bytes_moved=4 * x.nbytes,
    )


def join_forward(setting: Setting) -> Ways:
    xs = _tensors(setting, SOURCES)
    weight, bias, spec = _norm(setting, xs[0].shape[-1])

    def loop() -> Tensor:
        y = xs[0]
        for x in xs[1:]:
            y = y + x
        return F.layer_norm(y, y.shape[-1:], weight, bias)

    @torch.no_grad()
    def without_gradients(way: Callable[[], Tensor]) -> Tensor:
        return way()

    return Ways(
        {
            "torch adds + layer_norm": lambda: without_gradients(loop),
            "join": lambda: without_gradients(lambda: functional.join(xs, spec)),
        },
        _words(f"sum of {SOURCES} and norm, forward", xs[0]),
        bytes_moved=(SOURCES + 1) * xs[0].nbytes,
    )


def accumulate_norm(setting: Setting) -> Ways:
    (x,) = _tensors(setting, 1)
    y = torch.zeros_like(x, dtype=torch.float32)
    weight, bias, _ = _norm(setting, x.shape[-1])
    spec = NormSpec("layer", weight.detach(), bias.detach())

    def plain() -> Tensor:
        y.add_(x)
        return F.layer_norm(x, x.shape[-1:], spec.weight, spec.bias)

    return Ways(
        {
            "torch add + layer_norm": plain,
            "accumulate_norm": lambda: functional.accumulate_norm(x.detach(), y, spec)[0],
        },
        _words("running sum and norm, inference", x),
        bytes_moved=2 * x.nbytes + 2 * y.nbytes,
    )


KERNEL_CASES = tuple(
    Case(f"kernel_{build.__name__}", build, queued=True)
    for build in (copy, fork_forward, fork_backward, join_forward, accumulate_norm)
)
