"""linear_stack: a narrow ACN of Linear + activation layers as one operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acn_kernels import dispatch
from acn_kernels.autograd.linear_stack import LinearStack
from acn_kernels.functional.checks import check_input, check_sum, check_tensor, is_recorded
from acn_kernels.norm_spec import NormSpec
from acn_kernels.ops import compiled
from acn_kernels.reference import ACTIVATIONS

BACKENDS = ("triton", "native")
MIN_STACK_WIDTH = 16  # the least that a matrix instruction takes


def obstacle_to_linear_stack(backend: str, x: Tensor, recorded: bool) -> str | None:
    """Why ``backend`` cannot run :func:`linear_stack` on inputs like x [..., D]; None where it can.

    ``recorded``: whether a gradient is wanted.
    """
    obstacle = dispatch.obstacle_to(backend, x)
    if obstacle:
        return obstacle
    if backend == "native":
        return "the native path keeps nothing for a backward pass" if recorded else None
    from acn_kernels.kernels.launch import MAX_STACK_WIDTH

    if not MIN_STACK_WIDTH <= x.shape[-1] <= MAX_STACK_WIDTH:
        return f"D is {x.shape[-1]}; whole stacks take {MIN_STACK_WIDTH} to {MAX_STACK_WIDTH}"
    return None


def linear_stack(
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor] | None,
    activation: str,
    spec: NormSpec | None = None,
    scales: Tensor | None = None,
    include_input: bool = True,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """``norm(sum_i a_i x_i)`` with ``x_i = activation(x_{i-1} W_i^T + b_i)``, in one call.

    Eq. 1 of the paper for layers that are Linear + activation. On Triton this is one kernel: x and
    the sum stay on chip through all layers; the backward pass is one sweep that adds the direct
    gradient at every layer, and one batched product for all weight gradients. On a CPU the native
    path goes through the layers without Python in between; it has no gradient.

    Args:
        x: x_0, [..., D]; for Triton with D from 16 to 256 in fp16, bf16 or fp32.
        weight: [L, D, D], or L of [D, D], with L at least 1, of x's dtype; weight[i] is [out, in]
            as in nn.Linear.
        bias: [L, D], or L of [D], of x's dtype; or None.
        activation: "relu", "gelu" (exact), "gelu_tanh" or "silu".
        spec: the final norm, or None for the bare sum.
        scales: a_0 .. a_L as [L+1], or None for ones.
        include_input: whether x_0 is a term of the sum; a_0 is not read without it.
        out_dtype: dtype of the result; default x's.
        backend: "triton", "native", or "auto": the first of the two that can.

    Returns:
        Like x.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device.
        RuntimeError: no such path can run here, or not on inputs like x.
    """
    check_input("x", x)
    _check_layers(x, weight, bias)
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation is {activation!r}; it takes one of {known}")
    check_sum(x, len(weight), spec, scales)
    recorded = is_recorded(spec, x, scales, *_parts(weight), *_parts(bias))
    backend = _path(backend, x, recorded)
    if backend == "triton":
        weight, bias = _stacked(weight), None if bias is None else _stacked(bias)
    return run_linear_stack(
        x, weight, bias, activation, spec, scales, include_input, out_dtype or x.dtype, backend,
        recorded,
    )  # fmt: skip


def run_linear_stack(
    x, weight, bias, activation, spec, scales, include_input, out_dtype, backend, recorded
) -> Tensor:
    """:func:`linear_stack` with arguments that are known to go together, on a path that runs.

    ``weight`` and ``bias`` are stacked for Triton, layer by layer for the native path.
    """
    kind, norm_weight, norm_bias = ("none", None, None) if spec is None else spec[:3]
    eps = 0.0 if spec is None else spec.eps_for(x.dtype)
    options = (eps, kind, activation, include_input)
    if backend == "native":
        weights, biases = list(weight), [] if bias is None else list(bias)
        return compiled(backend).linear_layers(
            x, weights, biases, scales, norm_weight, norm_bias, *options, out_dtype
        )
    inputs = (x, weight, bias, scales, norm_weight, norm_bias)
    if recorded:
        return LinearStack.apply(*inputs, *options, out_dtype)[0]
    return compiled(backend).linear_stack(*inputs, *options, False, out_dtype)[0]


def _path(backend: str, x: Tensor, recorded: bool) -> str:
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend is {backend!r}; it takes one of auto, {', '.join(BACKENDS)}")
    obstacles = []
    for candidate in BACKENDS if backend == "auto" else (backend,):
        obstacle = obstacle_to_linear_stack(candidate, x, recorded)
        if obstacle is None:
            return candidate
        obstacles.append(obstacle)
    raise RuntimeError(f"linear_stack cannot run: {'; '.join(obstacles)}")


def _parts(given: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor | None]:
    return given if isinstance(given, (list, tuple)) else (given,)


def _stacked(given: Tensor | Sequence[Tensor]) -> Tensor:
    return given if isinstance(given, Tensor) else torch.stack(given)


def _check_layers(
    x: Tensor, weight: Tensor | Sequence[Tensor], bias: Tensor | Sequence[Tensor] | None
) -> None:
    width = x.shape[-1]
    _check_parameter("weight", weight, (width, width), x)
    if bias is None:
        return
    _check_parameter("bias", bias, (width,), x)
    if len(bias) != len(weight):
        raise ValueError(f"bias has {len(bias)} layers, weight has {len(weight)}; they take one L")


def _check_parameter(
    name: str, given: Tensor | Sequence[Tensor], shape: tuple[int, ...], x: Tensor
) -> None:
    """That ``given`` is a tensor [L, *shape], or L of ``shape``, which go with x."""
    if isinstance(given, Tensor):
        _check_tensor(name, given, given.shape[1:], shape, "L, ", x)
    elif isinstance(given, (list, tuple)):
        for i, tensor in enumerate(given):
            check_tensor(f"{name}[{i}]", tensor)
            _check_tensor(f"{name}[{i}]", tensor, tensor.shape, shape, "", x)
    else:
        raise TypeError(f"{name} is a {type(given).__name__}; it takes a tensor, or L of them")
    if len(given) == 0:
        raise ValueError(f"{name} has no layer; it takes L at least 1")


def _check_tensor(name, tensor, got, shape, before, x) -> None:
    if got != shape:
        # Put into words here alone: torch.compile cannot trace words of a size that changes.
        takes = f"({before}{', '.join(map(str, shape))})"
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; rows of {x.shape[-1]} take {takes}"
        )
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype}, x has {x.dtype}; they take one")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
