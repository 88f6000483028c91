"""join: the long sum of all layers' outputs, with the final norm, in one read of each.

The sources come as a tuple of pointers, so nothing is stacked or copied; the sum stays in fp32
registers until it is normalised and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import (
    JOIN_REGISTERS_PER_THREAD,
    MAX_SOURCES,
    as_rows,
    cdiv,
    packed,
    row_tile,
)
from acn_kernels.kernels.row_norm import row_norm


@triton.jit
def join_kernel(
    sources, scale_ptr, y_ptr, out_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr,
    rows, width, eps,
    HAS_SCALES: tl.constexpr, CARRY: tl.constexpr, STORE_Y: tl.constexpr,
    NORM: tl.constexpr, RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    col = tl.arange(0, TILE_WIDTH)
    valid = row < rows
    in_row = col < width
    mask = valid[:, None] & in_row[None, :]
    at = row[:, None] * width + col[None, :]
    if CARRY:
        y = tl.load(y_ptr + at, mask=mask, other=0.0)
    else:
        y = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
    for i in tl.static_range(len(sources)):
        x = tl.load(sources[i] + at, mask=mask, other=0.0).to(tl.float32)
        if HAS_SCALES:
            x *= tl.load(scale_ptr + i).to(tl.float32)
        y += x
    if STORE_Y:
        tl.store(y_ptr + at, y, mask=mask)
    if NORM:
        if not RMS:
            # Out of the way before the rest: held until after the norm, it would spill on sm_100.
            tl.store(mean_ptr + row, tl.sum(y, axis=1) / width, mask=valid)
        y, _, rstd = row_norm(
            y, mask, col, width, eps, weight_ptr, bias_ptr, RMS, HAS_WEIGHT, HAS_BIAS
        )
        tl.store(rstd_ptr + row, rstd, mask=valid)
    if NORM or not STORE_Y:  # the last launch of a deep sum
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def join_forward(
    xs: Sequence[Tensor],
    scales: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """norm(sum_i a_i x_i) for L+1 sources of one shape [..., D] and ``scales`` [L+1].

    Returns (out in ``out_dtype``, y fp32, mean, rstd). With ``kind`` "none" the sum itself is the
    output and the other three are empty; with a norm they are what its backward reads.
    """
    shape, device = xs[0].shape, xs[0].device
    norm = kind != "none"
    out = torch.empty(shape, dtype=out_dtype, device=device)
    sources = [as_rows(x).contiguous() for x in xs]
    rows, width = sources[0].shape
    deep = len(sources) > MAX_SOURCES
    scales, weight, bias = packed(scales), packed(weight), packed(bias)
    y = out.new_empty(shape if norm or deep else 0, dtype=torch.float32)
    mean = out.new_empty(rows if kind == "layer" else 0, dtype=torch.float32)
    rstd = out.new_empty(rows if norm else 0, dtype=torch.float32)
    if rows:
        tile = row_tile(width)
        for first in range(0, len(sources), MAX_SOURCES):
            last = first + MAX_SOURCES >= len(sources)
            join_kernel[(cdiv(rows, tile.rows),)](
                tuple(sources[first : first + MAX_SOURCES]),
                None if scales is None else scales[first:], y, out, mean, rstd, weight, bias,
                rows, width, eps,
                HAS_SCALES=scales is not None, CARRY=first > 0, STORE_Y=norm or not last,
                NORM=norm and last, RMS=kind == "rms",
                HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
                **tile.launch_options(JOIN_REGISTERS_PER_THREAD),
            )  # fmt: skip
    return out, (y if norm else y.new_empty(0)), mean, rstd
