"""The equations of Auto-Compressing Networks in plain PyTorch: what every fast path must equal.

Every function has the signature of its twin in :mod:`acn_kernels.functional` less ``backend``,
works in the precision it is given (sums of half-precision terms in fp32) and lets autograd
derive the gradients. Equation numbers are those of arXiv 2506.09714.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from acn_kernels.norm_spec import NormSpec

Term = tuple[Tensor, "Tensor | float | None"]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which terms of ``dtype`` are summed: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def norm(x: Tensor, spec: NormSpec) -> Tensor:
    """LayerNorm or RMSNorm of x [..., D] over the last axis; the result has x's dtype."""
    wide = x.to(sum_dtype(x.dtype))
    if spec.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + spec.eps_for(x.dtype))
    if spec.weight is not None:
        wide = wide * spec.weight
    if spec.bias is not None:
        wide = wide + spec.bias
    return wide.to(x.dtype)


def tap(x: Tensor, scale: Tensor | float | None = None, rows: Tensor | None = None) -> Term:
    """The term ``scale * x`` of the long sum: (x [..., T, D] or its rows [..., R, D], scale)."""
    return (x if rows is None else x.index_select(-2, rows)), scale


def fork(
    x: Tensor,
    spec: NormSpec,
    scale: Tensor | float | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Term]:
    """A layer's output at the fork of its two ways: norm(x) to the next layer, a term to y."""
    return norm(x, spec), tap(x, scale, rows)


def join(
    terms: Sequence[Term], spec: NormSpec | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The long sum ``norm(sum_i a_i x_i)`` (eq. 1), rounded once, to the terms' dtype."""
    dtype = out_dtype or terms[0][0].dtype
    y = sum(x.to(sum_dtype(x.dtype)) * (1 if scale is None else scale) for x, scale in terms)
    return norm(y, spec).to(dtype) if spec is not None else y.to(dtype)


def accumulate_norm(
    x: Tensor,
    y: Tensor | None,
    spec: NormSpec | None = None,
    scale: Tensor | float | None = None,
    alpha: float = 1.0,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``y' = y + scale*x``, ``u = alpha*x + (1-alpha)*y'``; returns (norm(u) in x's dtype, y')."""
    term, _ = tap(x, None, rows)
    term = term.to(sum_dtype(x.dtype)) * (1 if scale is None else scale)
    y = term if y is None else y + term
    u = x if alpha == 1 else (alpha * x + (1 - alpha) * y)
    return (u if spec is None else norm(u, spec)).to(x.dtype), y


def stack(
    layers: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    spec: NormSpec | None = None,
    *,
    alpha: float = 1.0,
    scales: Sequence[float] | Tensor | None = None,
    include_input: bool = True,
) -> Tensor:
    """The whole network: ``u_i = alpha x_{i-1} + (1-alpha) y_{i-1}``, ``x_i = f_i(u_i)``,
    ``y_i = y_{i-1} + a_i x_i``, ``y_0 = a_0 x_0``; returns norm(y_L).

    alpha = 1 is the ACN of eq. 1, alpha = 0 the residual network. ``scales`` holds a_0..a_L, or
    a_1..a_L without the input.
    """
    wide = sum_dtype(x.dtype)
    if scales is None:
        scales = [1.0] * (len(layers) + include_input)
    if not include_input:
        scales = [0.0, *scales]
    y = x.to(wide) * scales[0]
    for layer, scale in zip(layers, scales[1:], strict=True):
        u = x if alpha == 1 else (alpha * x + (1 - alpha) * y).to(x.dtype)
        x = layer(u)
        y = y + x.to(wide) * scale
    return (y if spec is None else norm(y, spec)).to(x.dtype)
