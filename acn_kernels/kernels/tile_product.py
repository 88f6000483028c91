"""The product of a tile of rows with a square weight, for kernels that stay on chip in between."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_product(
    x, weight_ptr, bias_ptr, scratch_ptr,
    TURNED: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """``x W^T + b`` (TURNED) or ``x W + b``, [ROWS, WIDTH] in fp32, for a packed W.

    A W too large for shared memory comes in chunks of CHUNK outputs. Parts of a tile cannot be put
    together in registers, so they meet in ``scratch`` [ROWS, WIDTH], which belongs to the program
    and stays in the caches, rounded to its dtype.
    """
    row = tl.arange(0, ROWS)
    col = tl.arange(0, WIDTH)
    if CHUNK == WIDTH:
        if TURNED:
            weight = tl.load(weight_ptr + col[:, None] + col[None, :] * WIDTH)
        else:
            weight = tl.load(weight_ptr + col[:, None] * WIDTH + col[None, :])
        product = tl.dot(x, weight, input_precision=PRECISION)
        if HAS_BIAS:
            product += tl.load(bias_ptr + col).to(tl.float32)[None, :]
        return product
    else:
        for first in range(0, WIDTH, CHUNK):
            out = first + tl.arange(0, CHUNK)
            if TURNED:
                weight = tl.load(weight_ptr + col[:, None] + out[None, :] * WIDTH)
            else:
                weight = tl.load(weight_ptr + col[:, None] * WIDTH + out[None, :])
            part = tl.dot(x, weight, input_precision=PRECISION)
            if HAS_BIAS:
                part += tl.load(bias_ptr + out).to(tl.float32)[None, :]
            part_at = scratch_ptr + row[:, None] * WIDTH + out[None, :]
            tl.store(part_at, part.to(scratch_ptr.dtype.element_ty))
        # Written by other threads than read it, and read before the next layer overwrites it.
        tl.debug_barrier()
        product = tl.load(scratch_ptr + row[:, None] * WIDTH + col[None, :]).to(tl.float32)
        tl.debug_barrier()
        return product
