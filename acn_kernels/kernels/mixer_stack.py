"""A whole stack of Mixer layers with its long sum and final norm: one program per sample.

x_i and y stay on the chip from the first layer to the last; y is in fp32 and is rounded once,
after the final norm. Memory sees the input, the output, and what a backward pass asks to keep.
With MIXED a layer reads ``u_i = alpha_i x_{i-1} + (1 - alpha_i) y_{i-1}``, else x_{i-1} itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import packed
from acn_kernels.kernels.mixer_layer import all_packed, mixer_layer, mixer_sizes, short_weight
from acn_kernels.kernels.row_norm import row_norm


@triton.jit
def mixer_stack_kernel(
    x_ptr, parameters, alpha_ptr, scale_ptr, out_ptr, y_ptr, mean_ptr, rstd_ptr, kept_ptr,
    weight_ptr, bias_ptr, layers, layer_eps, eps,
    INCLUDE_INPUT: tl.constexpr, MIXED: tl.constexpr, HAS_SCALES: tl.constexpr, KEEP: tl.constexpr,
    NORM: tl.constexpr, RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr, CHANNEL_HIDDEN: tl.constexpr,
    CLOSING: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, CHANNEL_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Addresses are a scalar, which may be past 2^31, and small offsets: they live in the loop.
    start = tl.program_id(0).to(tl.int64) * (T * D)
    batch_size = tl.num_programs(0).to(tl.int64) * (T * D)
    token = tl.arange(0, TILE_T)
    col = tl.arange(0, TILE_D)
    mask = (token < T)[:, None] & (col < D)[None, :]
    at = token[:, None] * D + col[None, :]
    u = tl.load(x_ptr + start + at, mask=mask, other=0.0)
    y = tl.zeros([TILE_T, TILE_D], dtype=tl.float32)
    if INCLUDE_INPUT:
        y += u.to(tl.float32)
        if HAS_SCALES:
            y *= tl.load(scale_ptr).to(tl.float32)
    short = short_weight(alpha_ptr, 0, MIXED)
    for layer in tl.range(layers, num_stages=1):
        x = mixer_layer(
            u, mask, layer, parameters, short, layer_eps, T, D, TOKEN_HIDDEN, CHANNEL_HIDDEN,
            TOKEN_CHUNK, CHANNEL_CHUNK, CLOSING, MIXED, PRECISION,
        )  # fmt: skip
        if HAS_SCALES:
            y += x.to(tl.float32) * tl.load(scale_ptr + layer + 1).to(tl.float32)
        else:
            y += x.to(tl.float32)
        u, kept_mask = x, mask
        if MIXED:
            followed = layer + 1 < layers  # the last output is no layer's input
            short = 1.0 - tl.load(alpha_ptr + layer + 1, mask=followed, other=1.0)
            u = (x.to(tl.float32) + short * (y - x.to(tl.float32))).to(x.dtype)
            kept_mask = mask & followed
        if KEEP:
            tl.store(kept_ptr + (layer * batch_size + start) + at, u, mask=kept_mask)
    if NORM:
        if KEEP:
            tl.store(y_ptr + start + at, y, mask=mask)
        y, mean, rstd = row_norm(
            y, mask, col, D, eps, weight_ptr, bias_ptr, RMS, HAS_WEIGHT, HAS_BIAS
        )
        if KEEP:
            row = tl.program_id(0).to(tl.int64) * T + token
            if not RMS:
                tl.store(mean_ptr + row, mean, mask=token < T)
            tl.store(rstd_ptr + row, rstd, mask=token < T)
    tl.store(out_ptr + start + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def mixer_stack(
    x: Tensor,
    parameters: Sequence[Tensor],
    alpha: Tensor | None,
    scales: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    layer_eps: float,
    eps: float,
    kind: str,
    include_input: bool,
    keep: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """norm(sum_i a_i x_i) of the L >= 1 Mixer layers at x [..., T, D].

    ``parameters`` are the 12 (16 with the closing step) tensors of MixerParameters, [L, ...], the
    matrices in x's dtype; ``alpha`` [L] fp32, None where all are 1, and not beside ``scales`` or
    without ``include_input``; ``scales`` [L+1] (the first unread without ``include_input``).
    Returns (out in ``out_dtype``, y fp32, mean, rstd, the layers' outputs [L, ..., T, D], or with
    ``alpha`` the inputs of all but the first [L-1, ..., T, D]): without ``keep`` all but the first
    are empty, and with ``kind`` "none" y, which is the output, and its statistics are.
    """
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    keep_norm = keep and kind != "none"
    layers, rows = parameters[0].shape[0], x.numel() // x.shape[-1]
    y = x.new_empty(x.shape if keep_norm else 0, dtype=torch.float32)
    mean = x.new_empty(rows if keep_norm and kind == "layer" else 0, dtype=torch.float32)
    rstd = x.new_empty(rows if keep_norm else 0, dtype=torch.float32)
    kept = x.new_empty((layers - (alpha is not None), *x.shape) if keep else 0)
    samples = rows // x.shape[-2]
    if samples:
        mixer_stack_kernel[(samples,)](
            x.contiguous(), all_packed(parameters), packed(alpha), packed(scales),
            out, y, mean, rstd, kept, packed(weight), packed(bias),
            layers, layer_eps, eps,
            INCLUDE_INPUT=include_input, MIXED=alpha is not None, HAS_SCALES=scales is not None,
            KEEP=keep, NORM=kind != "none", RMS=kind == "rms",
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            **mixer_sizes(x, parameters),
        )  # fmt: skip
    return out, y, mean, rstd, kept
