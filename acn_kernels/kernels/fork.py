"""fork: normalise a layer's output for the next layer; backward adds the direct gradient.

The output x_i of a layer goes two ways: through a norm into layer i+1, and straight to the long
sum y. Its gradient is ``dx = normbwd(dh) + a_i * g`` with the same g = dL/dy for every layer:
``fork_backward`` reads dh, x and g once each and writes dx once. The gradients of the norm's
weight and bias and of a learned scale, ``<g, x>``, fall out of the same pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import (
    as_rows,
    cdiv,
    packed,
    row_sum_programs,
    row_sum_tile,
    single_row_tile,
)
from acn_kernels.kernels.row_norm import row_norm
from acn_kernels.kernels.shares import add_shares, shares_of


@triton.jit
def fork_forward_kernel(
    x_ptr, h_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, rows, width, x_stride, eps,
    RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    col = tl.arange(0, TILE_WIDTH)
    valid = row < rows
    in_row = col < width
    mask = valid[:, None] & in_row[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + col[None, :], mask=mask, other=0.0)
    h, mean, rstd = row_norm(
        x.to(tl.float32), mask, col, width, eps, weight_ptr, bias_ptr, RMS, HAS_WEIGHT, HAS_BIAS
    )
    if not RMS:
        tl.store(mean_ptr + row, mean, mask=valid)
    tl.store(rstd_ptr + row, rstd, mask=valid)
    h_at = h_ptr + row[:, None] * width + col[None, :]
    tl.store(h_at, h.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fork_backward_kernel(
    dh_ptr, x_ptr, g_ptr, dx_ptr, weight_ptr, mean_ptr, rstd_ptr, scale_ptr, row_map_ptr,
    dweight_ptr, dbias_ptr, dscale_ptr,
    rows, width, tokens, kept, dh_stride, x_stride, g_stride,
    RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_DIRECT: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ROWS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    # Programs stride over the tiles, so that each keeps its share of the sums over all rows in
    # registers; the shares are added afterwards in a fixed order, without atomics.
    program = tl.program_id(0)
    col = tl.arange(0, TILE_WIDTH)
    in_row = col < width
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + col, mask=in_row, other=0.0).to(tl.float32)
        dweight = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
    if HAS_BIAS:
        dbias = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
    if HAS_SCALE:
        scale = tl.load(scale_ptr).to(tl.float32)
        dscale = tl.zeros([TILE_ROWS], dtype=tl.float32)
    for tile in range(program, tl.cdiv(rows, TILE_ROWS), tl.num_programs(0)):
        row = tl.full([TILE_ROWS], TILE_ROWS, tl.int64) * tile + tl.arange(0, TILE_ROWS)
        valid = row < rows
        mask = valid[:, None] & in_row[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + col[None, :], mask=mask, other=0.0)
        dh = tl.load(dh_ptr + row[:, None] * dh_stride + col[None, :], mask=mask, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=valid, other=0.0)
        x = x.to(tl.float32)
        dh = dh.to(tl.float32)
        if HAS_DIRECT:
            g_row = row
            g_mask = mask
            if HAS_ROWS:
                place = tl.load(row_map_ptr + row % tokens, mask=valid, other=-1)
                g_row = (row // tokens) * kept + place
                g_mask = mask & (place >= 0)[:, None]
            g_at = g_ptr + g_row[:, None] * g_stride + col[None, :]
            g = tl.load(g_at, mask=g_mask, other=0.0).to(tl.float32)
            if HAS_SCALE:
                dscale += tl.sum(tl.where(g_mask, g * x, 0.0), axis=1)
                g *= scale
        if not RMS:
            x -= tl.load(mean_ptr + row, mask=valid, other=0.0)[:, None]
        normed = x * rstd[:, None]
        if HAS_BIAS:
            dbias += dh
        if HAS_WEIGHT:
            dweight += dh * normed
            dh *= weight[None, :]
        dx = dh - normed * (tl.sum(dh * normed, axis=1) / width)[:, None]
        if not RMS:
            dx -= (tl.sum(dh, axis=1) / width)[:, None]
        dx *= rstd[:, None]
        if HAS_DIRECT:
            dx += g
        dx_at = dx_ptr + row[:, None] * width + col[None, :]
        tl.store(dx_at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    share = program.to(tl.int64) * width + col
    if HAS_WEIGHT:
        tl.store(dweight_ptr + share, tl.sum(dweight, axis=0), mask=in_row)
    if HAS_BIAS:
        tl.store(dbias_ptr + share, tl.sum(dbias, axis=0), mask=in_row)
    if HAS_SCALE:
        tl.store(dscale_ptr + program, tl.sum(dscale, axis=0))


def fork_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """norm(x) for x [..., D]; returns (h like x, mean [N] fp32 (empty for RMSNorm), rstd [N])."""
    h = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    source = as_rows(x)
    rows, width = source.shape
    rms = kind == "rms"
    mean = x.new_empty(0 if rms else rows, dtype=torch.float32)
    rstd = x.new_empty(rows, dtype=torch.float32)
    if rows == 0:
        return h, mean, rstd
    tile = single_row_tile(width)
    fork_forward_kernel[(cdiv(rows, tile.rows),)](
        source, h, mean, rstd, packed(weight), packed(bias), rows, width, source.stride(0), eps,
        RMS=rms, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        **tile.launch_options(),
    )  # fmt: skip
    return h, mean, rstd


def fork_backward(
    dh: Tensor,
    g: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    row_map: Tensor | None,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dscale); the last three are empty where there is nothing to derive.

    dh and x are [..., T, D]; g, the gradient of the long sum, is [..., T, D], or [..., R, D] with
    ``row_map`` [T] naming each token's row in it; ``scale`` is 0-dimensional.
    """
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x_rows, dh_rows = as_rows(x), as_rows(dh)
    g_rows = x_rows if g is None else as_rows(g)
    rows, width = x_rows.shape
    has_scale = scale is not None and g is not None
    has_rows = row_map is not None and g is not None
    tile = row_sum_tile(width, x.dtype, crowded=has_scale)
    programs = row_sum_programs(x.device, rows, tile)
    summed = (weight, bias, scale if has_scale else None)
    shares = shares_of(summed, programs, x.device)
    if rows:
        fork_backward_kernel[(programs,)](
            dh_rows, x_rows, g_rows, dx, packed(weight), mean, rstd, scale, row_map, *shares,
            rows, width, x.shape[-2] if has_rows else 1, g.shape[-2] if has_rows else 1,
            dh_rows.stride(0), x_rows.stride(0), g_rows.stride(0),
            RMS=kind == "rms", HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            HAS_DIRECT=g is not None, HAS_SCALE=has_scale, HAS_ROWS=has_rows,
            **tile.launch_options(),
        )  # fmt: skip
    return (dx, *add_shares(shares, summed, x))
