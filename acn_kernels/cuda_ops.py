"""The operators of ``torch.ops.acn_cuda``: the compiled extension's CUDA kernels.

Same signatures and results as the modules of :mod:`acn_kernels.kernels`, for machines without
Triton. No gradient is taken through them. The extension takes each tensor as rows of adjacent
elements, beside the tensor itself where its shape matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acn_kernels import _extension


def _native():
    if not _extension.has_cuda_kernels():
        raise RuntimeError(f"the extension has no CUDA kernels: {_extension.state()}")
    return _extension.module()


def _as_rows(x: Tensor, rows: int | None = None) -> Tensor:
    """x as [rows, K] with adjacent elements: a view where the strides allow, else a copy."""
    width = x.shape[-1] if rows is None else x[:1].numel() if rows else 0
    flat = x.reshape(x.numel() // width if width else rows or 0, width)
    return flat if flat.stride(1) == 1 or width == 1 else flat.contiguous()


def _packed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _number(scale: Tensor | None) -> Tensor | None:
    """Numbers that multiply sums, in their precision; on the device, where they stay."""
    return None if scale is None else scale.to(torch.float32).contiguous()


def join_forward(
    xs: Sequence[Tensor],
    scales: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """norm(sum_i a_i x_i) for any number of sources of one shape [..., D] and ``scales`` [L+1].

    Returns (out in ``out_dtype``, y, mean, rstd); the last three are empty with ``kind`` "none".
    """
    rows = [_as_rows(x) for x in xs]
    return _native().cuda_join_forward(
        xs[0], rows, _number(scales), _packed(weight), _packed(bias), eps, kind, out_dtype
    )


def accumulate_norm(
    x: Tensor,
    y: Tensor,
    first: bool,
    scale: Tensor | None,
    alpha: float,
    row_map: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """Adds ``scale * x`` to y (fp32, in place) and returns norm(u) in ``out_dtype``.

    x is [..., T, D]; y the same, or [..., R, D] with ``row_map`` [T] (then alpha is 1). With
    ``first`` y is written without being read. ``kind`` "none" returns u itself.
    """
    return _native().cuda_accumulate_norm(
        x, _as_rows(x), y, first, _number(scale), alpha, _packed(row_map), _packed(weight),
        _packed(bias), eps, kind, out_dtype,
    )  # fmt: skip


def exit_head(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    pooling: str,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, entropy and decision of every sample from ``norm(y + scale * x)``.

    x is [B, T, D], y fp32 of the same shape or None, ``weight`` [C, D]. ``pooling`` is "mean" over
    the tokens or "first", which reads token 0 alone (the two may then differ in T).

    Returns (logits [B, C] in x's dtype, entropy [B] fp32, stays [B] bool: the entropy is not
    below ``threshold``, live int32: how many stay).
    """
    return _native().cuda_exit_head(
        _adjacent(x), None if y is None else _adjacent(y), _number(scale), _packed(norm_weight),
        _packed(norm_bias), eps, kind, pooling == "first", weight.contiguous(), _packed(bias),
        threshold,
    )  # fmt: skip


def _adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def compact(
    stays: Tensor, tensors: Sequence[Tensor], kept: int | None
) -> tuple[list[Tensor], Tensor]:
    """The samples of each tensor [B, ...] that ``stays`` [B] bool marks, at the front, in order.

    Returns (the tensors, packed, with ``kept`` samples each: None keeps room for all B, count
    int32 of the staying ones). What lies past the count is not written.
    """
    rows = [_as_rows(x, len(stays)) for x in tensors]
    kept = len(stays) if kept is None else kept
    return _native().cuda_compact(stays.contiguous(), list(tensors), rows, kept)
