"""linear_stack: a narrow ACN of Linear + activation layers as one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from acn_kernels import dispatch
from acn_kernels.autograd.linear_stack import BACKEND, LinearStack
from acn_kernels.functional.checks import check_input, check_norm
from acn_kernels.norm_spec import NormSpec
from acn_kernels.ops import compiled
from acn_kernels.reference import ACTIVATIONS
from acn_kernels.scales import check_scales

MIN_STACK_WIDTH = 16  # the least that a matrix instruction takes


def obstacle_to_linear_stack(x: Tensor) -> str | None:
    """Why :func:`linear_stack` cannot take inputs like x [..., D]; None where it can."""
    obstacle = dispatch.obstacle_to(BACKEND, x)
    if obstacle:
        return obstacle
    from acn_kernels.kernels.launch import MAX_STACK_WIDTH

    if not MIN_STACK_WIDTH <= x.shape[-1] <= MAX_STACK_WIDTH:
        return f"D is {x.shape[-1]}; whole stacks take {MIN_STACK_WIDTH} to {MAX_STACK_WIDTH}"
    return None


def linear_stack(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    spec: NormSpec | None = None,
    scales: Tensor | None = None,
    include_input: bool = True,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``norm(sum_i a_i x_i)`` with ``x_i = activation(x_{i-1} W_i^T + b_i)``, in one kernel.

    Eq. 1 of the paper for layers that are Linear + activation. x and the sum stay on chip through
    all layers; the backward pass is one sweep that adds the direct gradient at every layer, and
    one batched product for all weight gradients. Runs on Triton alone.

    Args:
        x: x_0, [..., D] with D from 16 to 256; fp16, bf16 or fp32.
        weight: [L, D, D] with L at least 1, of x's dtype; weight[i] is [out, in] as in nn.Linear.
        bias: [L, D] of x's dtype, or None.
        activation: "relu", "gelu" (exact), "gelu_tanh" or "silu".
        spec: the final norm, or None for the bare sum.
        scales: a_0 .. a_L as [L+1], or None for ones.
        include_input: whether x_0 is a term of the sum; a_0 is not read without it.
        out_dtype: dtype of the result; default x's.

    Returns:
        Like x.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device.
        RuntimeError: Triton cannot run here, or not on inputs like x.
    """
    check_input("x", x)
    _check_layers(x, weight, bias)
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation is {activation!r}; it takes one of {known}")
    if scales is not None:
        check_scales(scales, len(weight) + 1)
    if spec is not None:
        check_norm(x, spec)
    obstacle = obstacle_to_linear_stack(x)
    if obstacle:
        raise RuntimeError(f"linear_stack cannot run: {obstacle}")
    kind, norm_weight, norm_bias = ("none", None, None) if spec is None else spec[:3]
    eps = 0.0 if spec is None else spec.eps_for(x.dtype)
    inputs = (x, weight, bias, scales, norm_weight, norm_bias)
    options = (eps, kind, activation, include_input)
    out_dtype = out_dtype or x.dtype
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if recorded:
        return LinearStack.apply(*inputs, *options, out_dtype)[0]
    return compiled(BACKEND).linear_stack(*inputs, *options, False, out_dtype)[0]


def _check_layers(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    width = x.shape[-1]
    if weight.dim() != 3 or weight.shape[1:] != (width, width) or len(weight) == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; rows of {width} take (L, {width}, {width}) "
            "with L at least 1"
        )
    if bias is not None and bias.shape != weight.shape[:2]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; it takes None or {tuple(weight.shape[:2])}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, x has {x.dtype}; they take one")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
