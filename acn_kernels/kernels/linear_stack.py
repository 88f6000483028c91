"""linear_stack: a whole ACN of Linear + activation layers, forward, in one kernel.

A program keeps its rows on chip through all layers: x in the input's precision, the long sum in
fp32. Weights come from L2, where every program finds them. What is read and written is x once, y
once and, for training, one tensor a layer: the layer's output for ReLU, which tells its own slope,
else the pre-activation, from which the backward pass makes both output and slope again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.activations import activated
from acn_kernels.kernels.launch import (
    LINEAR_STACK_STAGES,
    as_rows,
    cdiv,
    dot_precision,
    packed,
    stack_tile,
)
from acn_kernels.kernels.row_norm import row_norm
from acn_kernels.kernels.tile_product import tile_product


@triton.jit
def linear_stack_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, kept_ptr, scratch_ptr,
    y_ptr, out_ptr, mean_ptr, rstd_ptr, norm_weight_ptr, norm_bias_ptr,
    rows, width, depth, x_stride, eps,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALES: tl.constexpr,
    INCLUDE_INPUT: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr,
    HAS_NORM_WEIGHT: tl.constexpr, HAS_NORM_BIAS: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    # Addresses are a scalar, which may be past 2^31, and small offsets: they live in the loop.
    start = tl.program_id(0).to(tl.int64) * TILE_ROWS
    row = tl.arange(0, TILE_ROWS)
    col = tl.arange(0, TILE_WIDTH)
    valid = row < rows - start
    in_row = col < width
    mask = valid[:, None] & in_row[None, :]
    at = row[:, None] * width + col[None, :]
    first = start * width
    kept_at = row[:, None] * TILE_WIDTH + col[None, :]

    scratch = scratch_ptr + start * TILE_WIDTH
    x_row = (start + row) * x_stride
    x = tl.load(x_ptr + x_row[:, None] + col[None, :], mask=mask, other=0.0)
    y = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
    if INCLUDE_INPUT:
        y = x.to(tl.float32)
        if HAS_SCALES:
            y *= tl.load(scale_ptr).to(tl.float32)
    for i in range(depth):
        layer_bias = bias_ptr
        if HAS_BIAS:
            layer_bias += i * TILE_WIDTH
        z = tile_product(
            x, weight_ptr + i * TILE_WIDTH * TILE_WIDTH, layer_bias,
            scratch, True, HAS_BIAS, PRECISION, TILE_ROWS, TILE_WIDTH, CHUNK,
        )  # fmt: skip
        # Rounded as a layer of its own would, so that the backward pass finds the same numbers.
        z = z.to(x_ptr.dtype.element_ty)
        x = activated(z.to(tl.float32), ACTIVATION, z.dtype).to(z.dtype)
        if PADDED:
            x = tl.where(in_row[None, :], x, 0.0)  # NaN or inf times the weights' zeros
        if KEEP:
            kept_row = kept_ptr + (i * tl.cast(rows, tl.int64) + start) * TILE_WIDTH
            kept = x if ACTIVATION == "relu" else z
            tl.store(kept_row + kept_at, kept, mask=valid[:, None])
        term = x.to(tl.float32)
        if HAS_SCALES:
            term *= tl.load(scale_ptr + i + 1).to(tl.float32)
        y += term
    if NORM:
        if KEEP:
            tl.store(y_ptr + first + at, y, mask=mask)
        y, mean, rstd = row_norm(
            y, mask, col, width, eps, norm_weight_ptr, norm_bias_ptr,
            RMS, HAS_NORM_WEIGHT, HAS_NORM_BIAS,
        )  # fmt: skip
        if KEEP:
            if not RMS:
                tl.store(mean_ptr + start + row, mean, mask=valid)
            tl.store(rstd_ptr + start + row, rstd, mask=valid)
    tl.store(out_ptr + first + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def linear_stack(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scales: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    activation: str,
    include_input: bool,
    keep: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """norm(sum_i a_i x_i) with x_i = activation(x_{i-1} W_i^T + b_i), x_0 = x [..., D].

    weight is [L, D, D] in x's dtype, bias [L, D] in that or a wider one; scales [L+1] (the first
    unread without ``include_input``). Returns (out in ``out_dtype``, y fp32, mean, rstd, kept), all
    but the first for a backward pass and empty unless ``keep``. With ``kind`` "none" the sum itself
    is the output and the next three are empty; with a norm they are what its backward reads.
    kept [L, N, P] is what the stack's backward reads, P being D padded to a power of two: weights
    padded with zeros are read sixteen bytes at a time, whatever D is.
    """
    norm = kind != "none"
    keep_norm = keep and norm
    source = as_rows(x)
    rows, width = source.shape
    depth = len(weight)
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    y = out.new_empty(x.shape if keep_norm else 0, dtype=torch.float32)
    mean = out.new_empty(rows if keep and kind == "layer" else 0, dtype=torch.float32)
    rstd = out.new_empty(rows if keep_norm else 0, dtype=torch.float32)
    tile = stack_tile(width)
    kept = x.new_empty((depth, rows, tile.width) if keep else 0)
    if rows:
        linear_stack_kernel[(cdiv(rows, tile.rows),)](
            source, padded(weight, tile.width, 2), padded(bias, tile.width, 1), packed(scales),
            kept, tile.scratch(x, rows), y, out, mean, rstd,
            packed(norm_weight), packed(norm_bias),
            rows, width, depth, source.stride(0), eps,
            ACTIVATION=activation, HAS_BIAS=bias is not None, HAS_SCALES=scales is not None,
            INCLUDE_INPUT=include_input, KEEP=keep, NORM=norm, RMS=kind == "rms",
            HAS_NORM_WEIGHT=norm_weight is not None, HAS_NORM_BIAS=norm_bias is not None,
            PADDED=width < tile.width, PRECISION=dot_precision(x.dtype),
            **tile.launch_options(LINEAR_STACK_STAGES),
        )  # fmt: skip
    return out, y, mean, rstd, kept


def padded(x: Tensor | None, width: int, axes: int) -> Tensor | None:
    """x with zeros behind its last ``axes`` axes, each ``width`` long then, and packed."""
    if x is None or x.shape[-1] == width:
        return packed(x)
    return F.pad(x, (0, width - x.shape[-1]) * axes)
