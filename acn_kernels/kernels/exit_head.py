"""exit_head: the decision whether a sample may leave, from the last term of its sum, in one pass.

One program takes one sample: it adds the term to the running sum, normalises and pools the tokens
in registers, applies the shared head class tile by class tile, and keeps the entropy of the
softmax as it goes. x and y are read once and nothing of their size is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import exit_tile, packed
from acn_kernels.kernels.row_norm import row_norm


@triton.jit
def exit_head_kernel(
    x_ptr, y_ptr, scale_ptr, norm_weight_ptr, norm_bias_ptr, weight_ptr, bias_ptr,
    logits_ptr, entropy_ptr, stays_ptr, live_ptr,
    tokens, width, classes, x_sample, x_token, y_sample, y_token, eps, threshold,
    HAS_Y: tl.constexpr, HAS_SCALE: tl.constexpr,
    NORM: tl.constexpr, RMS: tl.constexpr, HAS_NORM_WEIGHT: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_TOKENS: tl.constexpr, TILE_CLASSES: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, TILE_WIDTH)
    in_row = col < width
    if HAS_SCALE:
        scale = tl.load(scale_ptr).to(tl.float32)
    # The norm's weight and bias are the same for all tokens, so they can wait for the mean.
    pooled = tl.zeros([TILE_WIDTH], dtype=tl.float32)
    for start in range(0, tokens, TILE_TOKENS):
        token = start + tl.arange(0, TILE_TOKENS).to(tl.int64)
        mask = (token < tokens)[:, None] & in_row[None, :]
        x_at = x_ptr + sample * x_sample + token[:, None] * x_token + col[None, :]
        u = tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
        if HAS_SCALE:
            u *= scale
        if HAS_Y:
            y_at = y_ptr + sample * y_sample + token[:, None] * y_token + col[None, :]
            u += tl.load(y_at, mask=mask, other=0.0)
        if NORM:
            u, _, _ = row_norm(u, mask, col, width, eps, None, None, RMS, False, False)
        pooled += tl.sum(tl.where(mask, u, 0.0), axis=0)
    pooled = pooled / tokens
    if HAS_NORM_WEIGHT:
        pooled *= tl.load(norm_weight_ptr + col, mask=in_row, other=0.0).to(tl.float32)
    if HAS_NORM_BIAS:
        pooled += tl.load(norm_bias_ptr + col, mask=in_row, other=0.0).to(tl.float32)

    # With t = z - top and p = e^t, the entropy is log(sum p) - sum(p t) / sum(p): no large terms.
    top = float("-inf")
    total = 0.0
    moment = 0.0
    for start in range(0, classes, TILE_CLASSES):
        c = start + tl.arange(0, TILE_CLASSES).to(tl.int64)
        known = c < classes
        w = tl.load(
            weight_ptr + c[:, None] * width + col[None, :],
            mask=known[:, None] & in_row[None, :], other=0.0,
        )  # fmt: skip
        z = tl.sum(w.to(tl.float32) * pooled[None, :], axis=1)
        if HAS_BIAS:
            z += tl.load(bias_ptr + c, mask=known, other=0.0).to(tl.float32)
        rounded = z.to(logits_ptr.dtype.element_ty)
        tl.store(logits_ptr + sample * classes + c, rounded, mask=known)
        # The entropy is that of the logits as they are handed out.
        z = tl.where(known, rounded.to(tl.float32), float("-inf"))
        higher = tl.maximum(top, tl.max(z, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        t = z - base
        p = tl.exp(t)
        # Without the choices, classes that cannot be would make 0 * -inf of what is 0.
        shrink = tl.where(total == 0.0, 0.0, top - base)
        moment = tl.exp(shrink) * (moment + shrink * total)
        moment += tl.sum(p * tl.where(p == 0.0, 0.0, t), axis=0)
        total = tl.exp(shrink) * total + tl.sum(p, axis=0)
        top = higher
    entropy = tl.log(total) - moment / total
    stays = (entropy < threshold) == 0  # NaN is below nothing
    tl.store(entropy_ptr + sample, entropy)
    tl.store(stays_ptr + sample, stays)
    tl.atomic_add(live_ptr, stays.to(tl.int32))  # whole numbers: the order does not show


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
    if pooling == "first":
        x, y = x[:, :1], None if y is None else y[:, :1]
    x, y = _adjacent(x), None if y is None else _adjacent(y)
    samples, tokens, width = x.shape
    classes = len(weight)
    logits = x.new_empty(samples, classes)
    entropy = x.new_empty(samples, dtype=torch.float32)
    stays = x.new_empty(samples, dtype=torch.bool)
    live = x.new_zeros((), dtype=torch.int32)
    if samples:
        exit_head_kernel[(samples,)](
            x, y, scale, packed(norm_weight), packed(norm_bias), packed(weight), packed(bias),
            logits, entropy, stays, live,
            tokens, width, classes, x.stride(0), x.stride(1),
            0 if y is None else y.stride(0), 0 if y is None else y.stride(1), eps, threshold,
            HAS_Y=y is not None, HAS_SCALE=scale is not None,
            NORM=kind != "none", RMS=kind == "rms", HAS_NORM_WEIGHT=norm_weight is not None,
            HAS_NORM_BIAS=norm_bias is not None, HAS_BIAS=bias is not None,
            **exit_tile(tokens, width, classes).launch_options(),
        )  # fmt: skip
    return logits, entropy, stays, live


def _adjacent(x: Tensor) -> Tensor:
    """x itself where the elements of a row lie side by side, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
