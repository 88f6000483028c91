"""linear_stack: a whole narrow ACN of Linear + activation layers in one kernel each way.

A program takes a tile of rows through every layer: x_i stays on the chip, y in fp32 registers,
and the weights come out of the L2 cache, which all programs share. What the backward needs is
written once per layer. For relu that is x_i, which tells the slope and is the input of the next
weight gradient. For the others it is z_i: slope and x_i follow from it where x_i does not give
the slope, at half of the memory that keeping both would hold between the two passes.

The backward sweeps from layer L to 1, ``dx_i = a_i g + dz_{i+1} W_{i+1}``,
``dz_i = dx_i * act'(z_i)``, and leaves dz (and the x_i that were not kept) behind for one batched
GEMM, ``dW_i = dz_i^T x_{i-1}``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import as_rows, stack_tile


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    """(act(z), act'(z)) in fp32; what the caller drops is never computed."""
    if ACTIVATION == "relu":
        x = tl.where(z <= 0, 0.0, z)  # NaN stays NaN
        slope = tl.where(z <= 0, 0.0, 1.0)
    elif ACTIVATION == "gelu":
        share = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
        x = z * share
        slope = share + z * (0.3989422804014327 * tl.exp(-0.5 * z * z))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh u) / 2 is the sigmoid of 2u.
        share = tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
        x = z * share
        slope = share + x * (1 - share) * (1.5957691216057308 * (1 + 0.134145 * z * z))
    else:
        tl.static_assert(ACTIVATION == "silu")
        share = tl.sigmoid(z)
        x = z * share
        slope = share + x * (1 - share)
    return x, slope


@triton.jit
def _product(
    a, weight_ptr, sum_stride: tl.constexpr, out_stride: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """a [TILE_ROWS, TILE_WIDTH] times the [WIDTH, WIDTH] matrix of these strides, in fp32.

    A matrix that does not fit the chip is read in blocks of ``BLOCK`` of its rows.
    """
    col = tl.arange(0, TILE_WIDTH)
    lane = tl.arange(0, BLOCK)
    in_row = (col < WIDTH)[None, :]
    if BLOCK == TILE_WIDTH:
        at = weight_ptr + lane[:, None] * sum_stride + col[None, :] * out_stride
        w = tl.load(at, mask=(lane < WIDTH)[:, None] & in_row, other=0.0)
        total = tl.dot(a, w, input_precision=PRECISION)
    else:
        total = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
        for first in tl.range(0, TILE_WIDTH, BLOCK, num_stages=STAGES):
            k = first + lane
            some = tl.gather(a, tl.broadcast_to(k[None, :], (TILE_ROWS, BLOCK)), 1)
            at = weight_ptr + k[:, None] * sum_stride + col[None, :] * out_stride
            w = tl.load(at, mask=(k < WIDTH)[:, None] & in_row, other=0.0)
            total = tl.dot(some, w, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["layers"])
def linear_stack_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, y_ptr, kept_ptr, rows, layers, x_stride,
    HAS_BIAS: tl.constexpr, HAS_SCALES: tl.constexpr, KEEP: tl.constexpr,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Offsets within the tile are small; 64 bits for every one of them would not fit the registers.
    start = tl.program_id(0).to(tl.int64) * TILE_ROWS
    row = tl.arange(0, TILE_ROWS)
    col = tl.arange(0, TILE_WIDTH)
    in_row = col < WIDTH
    mask = (start + row < rows)[:, None] & in_row[None, :]
    at = row[:, None] * WIDTH + col[None, :]
    plane = tl.cast(rows, tl.int64) * WIDTH
    y_ptr += start * WIDTH
    kept_ptr += start * WIDTH
    x_at = x_ptr + (start + row)[:, None] * x_stride + col[None, :]
    x = tl.load(x_at, mask=mask, other=0.0)
    if KEEP and ACTIVATION == "relu":
        tl.store(kept_ptr + at, x, mask=mask)
        kept_ptr += plane
    y = x.to(tl.float32)
    if HAS_SCALES:
        y *= tl.load(scale_ptr).to(tl.float32)
    # Columns past the width stay zero: the weights there read as zero and act(0) = 0.
    for _ in tl.range(layers, num_stages=STAGES):
        z = _product(
            x, weight_ptr, 1, WIDTH, WIDTH, PRECISION, TILE_ROWS, TILE_WIDTH, BLOCK, STAGES
        )
        if HAS_BIAS:
            z += tl.load(bias_ptr + col, mask=in_row, other=0.0).to(tl.float32)[None, :]
            bias_ptr += WIDTH
        if KEEP and ACTIVATION != "relu":
            tl.store(kept_ptr + at, z.to(kept_ptr.dtype.element_ty), mask=mask)
        out, _slope = _activate(z, ACTIVATION)
        x = out.to(x_ptr.dtype.element_ty)
        if KEEP and ACTIVATION == "relu":
            tl.store(kept_ptr + at, x, mask=mask)
        if HAS_SCALES:
            scale_ptr += 1
            out *= tl.load(scale_ptr).to(tl.float32)
        y += out
        weight_ptr += WIDTH * WIDTH
        kept_ptr += plane
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["layers"])
def linear_stack_backward_kernel(
    g_ptr, x_ptr, weight_ptr, scale_ptr, kept_ptr, dx_ptr, dz_ptr, input_ptr, dscale_ptr,
    rows, layers, g_stride, x_stride,
    HAS_SCALES: tl.constexpr, SCALE_GRADIENT: tl.constexpr, WRITE_INPUTS: tl.constexpr,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * TILE_ROWS
    row = tl.arange(0, TILE_ROWS)
    col = tl.arange(0, TILE_WIDTH)
    mask = (start + row < rows)[:, None] & (col < WIDTH)[None, :]
    at = row[:, None] * WIDTH + col[None, :]
    plane = tl.cast(rows, tl.int64) * WIDTH
    past = tl.cast(layers, tl.int64)
    g_at = g_ptr + (start + row)[:, None] * g_stride + col[None, :]
    g = tl.load(g_at, mask=mask, other=0.0)
    dx = g.to(tl.float32)
    if HAS_SCALES:
        scale_ptr += past
        dx *= tl.load(scale_ptr).to(tl.float32)
    if SCALE_GRADIENT:
        dscale_ptr += tl.program_id(0).to(tl.int64) * (past + 1) + past
    if ACTIVATION == "relu":  # x_0 comes first
        kept_ptr += plane
    weight_ptr += (past - 1) * (WIDTH * WIDTH)
    kept_ptr += (past - 1) * plane + start * WIDTH
    dz_ptr += (past - 1) * plane + start * WIDTH
    dx_ptr += start * WIDTH
    if WRITE_INPUTS:
        input_ptr += past * plane + start * WIDTH
    for i in tl.range(layers, num_stages=STAGES):
        kept = tl.load(kept_ptr + at, mask=mask, other=0.0).to(tl.float32)
        x, slope = _activate(kept, ACTIVATION)
        if SCALE_GRADIENT:
            product = tl.where(mask, g.to(tl.float32) * x, 0.0)
            tl.store(dscale_ptr, tl.sum(tl.sum(product, axis=1), axis=0))
            dscale_ptr -= 1
        if WRITE_INPUTS:  # x_L is the input of no layer
            tl.store(input_ptr + at, x.to(x_ptr.dtype.element_ty), mask=mask & (i > 0))
            input_ptr -= plane
        dz = (dx * slope).to(dz_ptr.dtype.element_ty)
        tl.store(dz_ptr + at, dz, mask=mask)
        dx = _product(
            dz, weight_ptr, WIDTH, 1, WIDTH, PRECISION, TILE_ROWS, TILE_WIDTH, BLOCK, STAGES
        )
        direct = g.to(tl.float32)
        if HAS_SCALES:
            scale_ptr -= 1
            direct *= tl.load(scale_ptr).to(tl.float32)
        dx += direct
        weight_ptr -= WIDTH * WIDTH
        kept_ptr -= plane
        dz_ptr -= plane
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if SCALE_GRADIENT or WRITE_INPUTS:
        x_at = x_ptr + (start + row)[:, None] * x_stride + col[None, :]
        first = tl.load(x_at, mask=mask, other=0.0)
        if SCALE_GRADIENT:
            product = tl.where(mask, g.to(tl.float32) * first.to(tl.float32), 0.0)
            tl.store(dscale_ptr, tl.sum(tl.sum(product, axis=1), axis=0))
        if WRITE_INPUTS:
            tl.store(input_ptr + at, first, mask=mask)


def linear_stack_forward(
    x: Tensor,
    weights: Tensor,
    biases: Tensor | None,
    scales: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(y like x in ``out_dtype``, what the backward reads) for x [..., D], weights [L, D, D].

    biases are [L, D] and scales [L + 1], or None. With ``keep`` the second result is, in x's
    dtype, z_1..z_L [L, N, D], or for relu x_0..x_L [L + 1, N, D]; without, it is empty.
    """
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    source = as_rows(x)
    rows, width = source.shape
    layers = len(weights)
    planes = layers + (activation == "relu") if keep else 0
    kept = x.new_empty((planes, rows, width) if keep else 0)
    if rows:
        tile = stack_tile(width, rows, x.dtype, x.device)
        linear_stack_forward_kernel[(triton.cdiv(rows, tile.rows),)](
            source, weights.contiguous(), None if biases is None else biases.contiguous(),
            None if scales is None else scales.contiguous(), y, kept,
            rows, layers, source.stride(0),
            HAS_BIAS=biases is not None, HAS_SCALES=scales is not None, KEEP=keep,
            ACTIVATION=activation, WIDTH=width, PRECISION="ieee", **tile.launch_options(),
        )  # fmt: skip
    return y, kept


def linear_stack_backward(
    g: Tensor,
    x: Tensor,
    weights: Tensor,
    scales: Tensor | None,
    kept: Tensor,
    activation: str,
    weights_wanted: bool,
    biases_wanted: bool,
    scales_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweights, dbiases, dscales) from g = dL/dy; empty where not wanted.

    ``kept`` is what linear_stack_forward returned for the same x, weights and activation.
    """
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x_rows, g_rows = as_rows(x), as_rows(g)
    rows, width = x_rows.shape
    layers = len(weights)
    relu = activation == "relu"
    write_inputs = weights_wanted and not relu and layers > 0
    tile = stack_tile(width, rows, x.dtype, x.device)
    programs = triton.cdiv(rows, tile.rows)
    dz = x.new_empty(layers, rows, width)
    inputs = x.new_empty((layers, rows, width) if write_inputs else 0)
    shares = x.new_empty((programs, layers + 1) if scales_wanted else 0, dtype=torch.float32)
    if rows:
        linear_stack_backward_kernel[(programs,)](
            g_rows, x_rows, weights.contiguous(), None if scales is None else scales.contiguous(),
            kept, dx, dz, inputs, shares,
            rows, layers, g_rows.stride(0), x_rows.stride(0),
            HAS_SCALES=scales is not None, SCALE_GRADIENT=scales_wanted,
            WRITE_INPUTS=write_inputs,
            ACTIVATION=activation, WIDTH=width, PRECISION="ieee", **tile.launch_options(),
        )  # fmt: skip
    nothing = dx.new_empty(0)
    if weights_wanted:
        dweights = torch.bmm(dz.transpose(1, 2), kept[:layers] if relu else inputs)
    return (
        dx,
        dweights.to(weights.dtype) if weights_wanted else nothing,
        dz.sum(1) if biases_wanted else nothing,
        shares.sum(0).to(scales.dtype) if scales_wanted else nothing,
    )
