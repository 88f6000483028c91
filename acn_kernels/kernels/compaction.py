"""compact: the samples that stay move to the front, in their order, and nobody asks the host.

The count stays on the device: the places come from a cumulative sum, and each staying sample is
read and written once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import cdiv, copy_tile, packed


@triton.jit
def compact_kernel(
    x_ptr, stays_ptr, upto_ptr, out_ptr, samples, width, kept, x_sample,
    TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    # All along one axis: of the others, CUDA allows 65535 programs.
    program, parts = tl.program_id(0).to(tl.int64), tl.cdiv(width, TILE_WIDTH)
    row = program // parts * TILE_ROWS + tl.arange(0, TILE_ROWS)
    col = program % parts * TILE_WIDTH + tl.arange(0, TILE_WIDTH)
    stays = tl.load(stays_ptr + row, mask=row < samples, other=0) != 0
    place = tl.load(upto_ptr + row, mask=stays, other=0).to(tl.int64) - 1
    mask = (stays & (place < kept))[:, None] & (col < width)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_sample + col[None, :], mask=mask)
    tl.store(out_ptr + place[:, None] * width + col[None, :], x, mask=mask)


def compact(
    stays: Tensor, tensors: Sequence[Tensor], kept: int | None
) -> tuple[list[Tensor], Tensor]:
    """The samples of each tensor [B, ...] that ``stays`` [B] bool marks, at the front, in order.

    Returns (the tensors, packed, with ``kept`` samples each: None keeps room for all B, count
    int32 of the staying ones). What lies past the count is not written.
    """
    samples = len(stays)
    kept = samples if kept is None else kept
    upto = stays.cumsum(0, dtype=torch.int32)
    count = upto[-1].clone() if samples else upto.new_zeros(())
    outs = [x.new_empty((kept, *x.shape[1:])) for x in tensors]
    for x, out in zip(tensors, outs, strict=True):
        if out.numel() == 0:
            continue
        rows = _as_samples(x)
        width = rows.shape[1]
        tile = copy_tile(width)
        programs = cdiv(samples, tile.rows) * cdiv(width, tile.width)
        compact_kernel[(programs,)](
            rows, packed(stays), upto, out, samples, width, kept, rows.stride(0),
            TILE_ROWS=tile.rows, TILE_WIDTH=tile.width, num_warps=tile.warps,
        )  # fmt: skip
    return outs, count


def _as_samples(x: Tensor) -> Tensor:
    """x [B, ...] as [B, K] with packed samples: a view where the strides allow, else a copy."""
    flat = x.reshape(len(x), -1)
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()
