"""bias_gelu: the exact GELU of ``z + b``; its backward sums the bias's gradient in its own pass.

A Linear layer's bias costs nothing in the product's epilogue, but its gradient is one more read of
the widest tensor in a block. Added here instead, behind the product, bias and gradient are free.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.activations import activated, activation_slope
from acn_kernels.kernels.launch import (
    as_rows,
    cdiv,
    column_sum_tile,
    column_tile,
    packed,
    row_sum_programs,
)
from acn_kernels.kernels.shares import add_shares, shares_of


@triton.jit
def bias_gelu_kernel(
    z_ptr, bias_ptr, h_ptr, rows, width, z_stride,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    col = tl.program_id(1) * TILE_WIDTH + tl.arange(0, TILE_WIDTH)
    mask = (row < rows)[:, None] & (col < width)[None, :]
    z = tl.load(z_ptr + row[:, None] * z_stride + col[None, :], mask=mask, other=0.0)
    bias = tl.load(bias_ptr + col, mask=col < width, other=0.0)
    h = activated(z.to(tl.float32) + bias.to(tl.float32)[None, :], "gelu", z.dtype)
    h_at = h_ptr + row[:, None] * width + col[None, :]
    tl.store(h_at, h.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bias_gelu_backward_kernel(
    dh_ptr, z_ptr, bias_ptr, dz_ptr, dbias_ptr, rows, width, dh_stride, z_stride,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    # As in fork's backward: programs stride over the rows, each keeping its share of the sum.
    program = tl.program_id(0)
    col = tl.program_id(1) * TILE_WIDTH + tl.arange(0, TILE_WIDTH)
    in_row = col < width
    bias = tl.load(bias_ptr + col, mask=in_row, other=0.0).to(tl.float32)
    dbias = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
    for tile in range(program, tl.cdiv(rows, TILE_ROWS), tl.num_programs(0)):
        row = tl.full([TILE_ROWS], TILE_ROWS, tl.int64) * tile + tl.arange(0, TILE_ROWS)
        mask = (row < rows)[:, None] & in_row[None, :]
        z = tl.load(z_ptr + row[:, None] * z_stride + col[None, :], mask=mask, other=0.0)
        dh = tl.load(dh_ptr + row[:, None] * dh_stride + col[None, :], mask=mask, other=0.0)
        slope = activation_slope(z.to(tl.float32) + bias[None, :], "gelu", z.dtype)
        dz = dh.to(tl.float32) * slope
        dbias += tl.where(mask, dz, 0.0)
        dz_at = dz_ptr + row[:, None] * width + col[None, :]
        tl.store(dz_at, dz.to(dz_ptr.dtype.element_ty), mask=mask)
    tl.store(dbias_ptr + program.to(tl.int64) * width + col, tl.sum(dbias, axis=0), mask=in_row)


def bias_gelu(z: Tensor, bias: Tensor) -> Tensor:
    """gelu(z + bias) for z [..., H] and bias [H], in z's dtype."""
    h = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    source = as_rows(z)
    rows, width = source.shape
    if rows:
        tile = column_tile(width)
        grid = (cdiv(rows, tile.rows), cdiv(width, tile.width))
        bias_gelu_kernel[grid](
            source, packed(bias), h, rows, width, source.stride(0), **tile.launch_options()
        )
    return h


def bias_gelu_backward(dh: Tensor, z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(dz, dbias) from the gradient dh of gelu(z + bias)."""
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    z_rows, dh_rows = as_rows(z), as_rows(dh)
    rows, width = z_rows.shape
    tile = column_sum_tile(width)
    columns = cdiv(width, tile.width)
    programs = row_sum_programs(z.device, rows, tile, columns)
    (dbias,) = shares = shares_of([bias], programs, z.device)
    if rows:
        bias_gelu_backward_kernel[(programs, columns)](
            dh_rows, z_rows, packed(bias), dz, dbias, rows, width,
            dh_rows.stride(0), z_rows.stride(0),
            **tile.launch_options(),
        )  # fmt: skip
    return (dz, *add_shares(shares, [bias], z))
