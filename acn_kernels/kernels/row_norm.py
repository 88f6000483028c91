"""The norm of whole rows in registers, for the kernels that put one before their store."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_norm(
    x, mask, col, width, eps, weight_ptr, bias_ptr,
    RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """(norm(x), mean, rstd) of the fp32 tile x [rows, columns], zero where ``mask`` is not set.

    ``col`` are the columns' numbers, of which ``width`` count. The mean of an RMSNorm is 0.
    """
    mean = tl.zeros([x.shape[0]], dtype=tl.float32)
    if not RMS:
        mean = tl.sum(x, axis=1) / width
        x = tl.where(mask, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / width + eps)
    h = x * rstd[:, None]
    if HAS_WEIGHT:
        h *= tl.load(weight_ptr + col, mask=col < width, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        h += tl.load(bias_ptr + col, mask=col < width, other=0.0).to(tl.float32)[None, :]
    return h, mean, rstd
