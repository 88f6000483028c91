"""linear_stack_backward: one sweep from the last layer to the first, in one kernel.

``dz_i = dx_i f'(z_i)``, ``dx_{i-1} = dz_i W_i + a_{i-1} g``: the direct gradient g stays on chip
and is added at every layer. The sweep writes what the weight gradients are made of, dz_i and
x_{i-1}, and one batched product makes them all. Sums over rows (biases, scales) are shares of the
programs, added in a fixed order.
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
    dot_precision,
    linear_stack_backward_stages,
    packed,
    stack_backward_tile,
)
from acn_kernels.kernels.linear_stack import padded
from acn_kernels.kernels.shares import add_shares, shares_of
from acn_kernels.kernels.tile_product import tile_product


@triton.jit
def linear_stack_backward_kernel(
    g_ptr, x_ptr, weight_ptr, scale_ptr, kept_ptr, scratch_ptr,
    dx_ptr, dz_ptr, inner_ptr, dbias_ptr, dscale_ptr,
    rows, width, depth, g_stride, x_stride,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALES: tl.constexpr,
    INCLUDE_INPUT: tl.constexpr, PRECISION: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    start = program * TILE_ROWS
    row = tl.arange(0, TILE_ROWS)
    col = tl.arange(0, TILE_WIDTH)
    valid = (row < rows - start)[:, None]
    mask = valid & (col < width)[None, :]
    at = row[:, None] * TILE_WIDTH + col[None, :]
    scratch = scratch_ptr + start * TILE_WIDTH

    g_row = (start + row) * g_stride
    g = tl.load(g_ptr + g_row[:, None] + col[None, :], mask=mask, other=0.0)
    # As the layers' own terms would have it, and half the registers.
    g = g.to(x_ptr.dtype.element_ty)
    dx = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
    for back in range(depth):
        i = depth - 1 - back
        first = (i * tl.cast(rows, tl.int64) + start) * TILE_WIDTH
        scale = 1.0
        if HAS_SCALES:
            scale = tl.load(scale_ptr + i + 1).to(tl.float32)
        z = tl.load(kept_ptr + first + at, mask=valid, other=0.0)
        if ACTIVATION == "relu":
            out = z
        else:
            out = activated(z.to(tl.float32), ACTIVATION, z.dtype).to(z.dtype)
            tl.store(inner_ptr + first + at, out, mask=valid & (i < depth - 1))
        if HAS_SCALES:
            # Down the rows first: across them, the sum would cost registers that the loop lacks.
            share = tl.sum(tl.sum(g.to(tl.float32) * out.to(tl.float32), axis=0), axis=0)
            tl.store(dscale_ptr + program * (depth + 1) + i + 1, share)
        slope = activation_slope(z.to(tl.float32), ACTIVATION, z.dtype)
        dz = (dx + scale * g.to(tl.float32)) * slope
        if HAS_BIAS:
            share_at = dbias_ptr + (program * depth + i) * TILE_WIDTH + col
            tl.store(share_at, tl.sum(dz, axis=0))
        dz = dz.to(x_ptr.dtype.element_ty)
        tl.store(dz_ptr + first + at, dz, mask=valid)
        dx = tile_product(
            dz, weight_ptr + i * TILE_WIDTH * TILE_WIDTH, None, scratch,
            False, False, PRECISION, TILE_ROWS, TILE_WIDTH, CHUNK,
        )  # fmt: skip
    if HAS_SCALES:
        share = 0.0
        if INCLUDE_INPUT:
            x_row = (start + row) * x_stride
            x = tl.load(x_ptr + x_row[:, None] + col[None, :], mask=mask, other=0.0)
            share = tl.sum(tl.sum(g.to(tl.float32) * x.to(tl.float32), axis=0), axis=0)
            dx += tl.load(scale_ptr).to(tl.float32) * g.to(tl.float32)
        tl.store(dscale_ptr + program * (depth + 1), share)
    elif INCLUDE_INPUT:
        dx += g.to(tl.float32)
    dx_at = dx_ptr + start * width + (row[:, None] * width + col[None, :])
    tl.store(dx_at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def linear_stack_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scales: Tensor | None,
    kept: Tensor,
    activation: str,
    include_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dscales) from g, the gradient of the sum y; the last two are empty
    where there is no bias or no scales. ``kept`` is what :func:`linear_stack` kept."""
    x_rows, g_rows = as_rows(x), as_rows(g)
    rows, width = x_rows.shape
    depth = len(weight)
    tile = stack_backward_tile(width, scales is not None, x.dtype, x.device)
    programs = cdiv(rows, tile.rows)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dz = torch.empty_like(kept)
    # x_1 .. x_{L-1}: kept where they tell their own slopes, else made again.
    inner = kept[:-1] if activation == "relu" else torch.empty_like(kept[:-1])
    summed = (padded(bias, tile.width, 1), scales)
    shares = shares_of(summed, programs, x.device)
    if rows:
        linear_stack_backward_kernel[(programs,)](
            g_rows, x_rows, padded(weight, tile.width, 2), packed(scales), kept,
            tile.scratch(x, rows), dx, dz, inner, *shares,
            rows, width, depth, g_rows.stride(0), x_rows.stride(0),
            ACTIVATION=activation, HAS_BIAS=bias is not None, HAS_SCALES=scales is not None,
            INCLUDE_INPUT=include_input, PRECISION=dot_precision(x.dtype),
            **tile.launch_options(linear_stack_backward_stages(tile, activation)),
        )  # fmt: skip
    dz, inner = dz[..., :width], inner[..., :width]
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    torch.mm(dz[0].mT, x_rows, out=dweight[0])
    torch.bmm(dz[1:].mT, inner, out=dweight[1:])
    dbias, dscales = add_shares(shares, summed, x)
    return dx, dweight, dbias[..., :width].contiguous(), dscales
