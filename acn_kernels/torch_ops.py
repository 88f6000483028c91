"""The operations on PyTorch's own kernels: same names and signatures as the compiled paths.

Written from differentiable operations only, so that gradients of gradients exist here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acn_kernels.reference import sum_dtype


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str) -> Tensor:
    """LayerNorm ("layer"), RMSNorm ("rms") or x itself ("none"), in the widest of the dtypes."""
    if kind == "none":
        return x
    x, weight, bias = _in_one_dtype(x, weight, bias)
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    normed = F.rms_norm(x, x.shape[-1:], weight, eps)
    return normed if bias is None else normed + bias


def fork_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """norm(x) in x's dtype, mean and rstd (both empty for RMSNorm, whose backward derives them)."""
    if kind == "rms":
        return norm(x, weight, bias, eps, kind).to(x.dtype), x.new_empty(0), x.new_empty(0)
    wide, weight, bias = _in_one_dtype(x, weight, bias)
    h, mean, rstd = torch.native_layer_norm(wide, x.shape[-1:], weight, bias, eps)
    return h.to(x.dtype), mean, rstd


def _in_one_dtype(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same in the widest of their dtypes, as PyTorch's norms take them."""
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(dtypes) == 1:
        return x, weight, bias
    wide = functools.reduce(torch.promote_types, dtypes)
    return tuple(None if t is None else t.to(wide) for t in (x, weight, bias))


def fork_backward(
    dh: Tensor,
    g: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    row_index: Tensor | None,
    eps: float,
    kind: str,
    scale_wanted: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias, dscale); the direct gradient g is added into dx where it stands."""
    backward = _layer_norm_backward if kind == "layer" else _rms_norm_backward
    dx, dweight, dbias = backward(dh, x, weight, bias, mean, rstd, eps)
    dscale = None
    if g is not None:
        add_direct(dx, g, scale, row_index)
        if scale_wanted:
            dscale = direct_scale_gradient(g, x, scale, row_index)
    return dx.to(x.dtype), dweight, dbias, dscale


def add_direct(dx: Tensor, g: Tensor, scale: Tensor | None, row_index: Tensor | None) -> None:
    """dx += scale * g, on the rows that g holds, in place."""
    if row_index is not None:
        dx.index_add_(-2, row_index, (g if scale is None else g * scale).to(dx.dtype))
    elif scale is None:
        dx.add_(g)
    else:
        dx.addcmul_(g, scale.to(dx.dtype))


def direct_scale_gradient(
    g: Tensor, x: Tensor, scale: Tensor | None, row_index: Tensor | None
) -> Tensor | None:
    """<g, x> over the rows that g holds, in ``scale``'s dtype; None without a scale."""
    if scale is None:
        return None
    wide = sum_dtype(x.dtype)
    x = x if row_index is None else x.index_select(-2, row_index)
    return (g.to(wide) * x.to(wide)).sum().to(scale.dtype)


def _layer_norm_backward(dh, x, weight, bias, mean, rstd, eps):
    wide, gamma, beta = _in_one_dtype(x, weight, bias)
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dh.to(wide.dtype), wide, x.shape[-1:], mean, rstd, gamma, beta,
        [True, weight is not None, bias is not None],
    )  # fmt: skip
    dweight = None if weight is None else dweight.to(weight.dtype)
    return dx, dweight, None if bias is None else dbias.to(bias.dtype)


def _rms_norm_backward(dh, x, weight, bias, mean, rstd, eps):
    wide, dh = x.to(sum_dtype(x.dtype)), dh.to(sum_dtype(x.dtype))
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = wide * rstd
    dweight = None
    dbias = None if bias is None else _over_rows(dh).to(bias.dtype)
    if weight is not None:
        dweight = _over_rows(dh * normed).to(weight.dtype)
        dh = dh * weight
    dx = (dh - normed * (dh * normed).mean(-1, keepdim=True)) * rstd
    return dx, dweight, dbias


def _over_rows(x: Tensor) -> Tensor:
    """The sum [D] of all rows of x [..., D]."""
    return x.reshape(-1, x.shape[-1]).sum(0)


def add_into(y: Tensor | None, x: Tensor, scale: Tensor | None) -> Tensor:
    """y += scale * x in place; y None starts a sum of its own, in the sum's dtype and packed."""
    if y is None:
        wide = x.to(sum_dtype(x.dtype), copy=True, memory_format=torch.contiguous_format)
        return wide if scale is None else wide.mul_(scale)
    return y.add_(x) if scale is None else y.addcmul_(x, scale.to(y.dtype))


def sum_terms(xs: Sequence[Tensor], scales: Tensor | None) -> Tensor:
    """sum_i a_i x_i of same-shaped tensors in the sum's dtype, accumulated in place."""
    y = None
    for i, x in enumerate(xs):
        y = add_into(y, x, None if scales is None else scales[i])
    return y


def accumulate_norm(
    x: Tensor,
    y: Tensor,
    first: bool,
    scale: Tensor | None,
    alpha: float,
    row_index: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """y += scale * x in place (or =, with ``first``); returns norm(alpha x + (1-alpha) y)."""
    term = x if row_index is None else x.index_select(-2, row_index)
    if first:
        y.zero_()
    add_into(y, term, scale)
    u = x
    if alpha == 0:
        u = y
    elif alpha != 1:
        u = torch.lerp(y, x.to(y.dtype), alpha)
    return norm(u, weight, bias, eps, kind).to(out_dtype)
