"""accumulate_norm: inference's step between two layers, in one pass.

Nothing is kept for a backward pass, so the sum runs along: read x_i and y, write y + a_i x_i
(fp32) and the norm of the next layer's input ``u = alpha x_i + (1 - alpha) y``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import as_rows, cdiv, packed, row_tile
from acn_kernels.kernels.row_norm import row_norm


@triton.jit
def accumulate_norm_kernel(
    x_ptr, y_ptr, h_ptr, scale_ptr, row_map_ptr, weight_ptr, bias_ptr,
    rows, width, tokens, kept, x_stride, alpha, eps,
    FIRST: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ROWS: tl.constexpr, MIX: tl.constexpr,
    NORM: tl.constexpr, RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    col = tl.arange(0, TILE_WIDTH)
    valid = row < rows
    in_row = col < width
    mask = valid[:, None] & in_row[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + col[None, :], mask=mask, other=0.0)
    x = x.to(tl.float32)
    y_row = row
    y_mask = mask
    if HAS_ROWS:
        place = tl.load(row_map_ptr + row % tokens, mask=valid, other=-1)
        y_row = (row // tokens) * kept + place
        y_mask = mask & (place >= 0)[:, None]
    y_at = y_ptr + y_row[:, None] * width + col[None, :]
    term = x
    if HAS_SCALE:
        term *= tl.load(scale_ptr).to(tl.float32)
    y = term
    if not FIRST:
        y += tl.load(y_at, mask=y_mask, other=0.0)
    tl.store(y_at, y, mask=y_mask)
    if MIX:
        x = alpha * x + (1.0 - alpha) * y
    if NORM:
        x, _, _ = row_norm(
            x, mask, col, width, eps, weight_ptr, bias_ptr, RMS, HAS_WEIGHT, HAS_BIAS
        )
    h_at = h_ptr + row[:, None] * width + col[None, :]
    tl.store(h_at, x.to(h_ptr.dtype.element_ty), mask=mask)


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
    h = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    source = as_rows(x)
    rows, width = source.shape
    if rows:
        tile = row_tile(width)
        accumulate_norm_kernel[(cdiv(rows, tile.rows),)](
            source, y, h, scale, row_map, packed(weight), packed(bias),
            rows, width, x.shape[-2] if row_map is not None else 1,
            y.shape[-2] if row_map is not None else 1, source.stride(0), alpha, eps,
            FIRST=first, HAS_SCALE=scale is not None, HAS_ROWS=row_map is not None,
            MIX=alpha != 1, NORM=kind != "none", RMS=kind == "rms",
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            **tile.launch_options(),
        )  # fmt: skip
    return h
