"""Sums over all rows: each program of a backward pass keeps its share, one launch adds them up.

The gradients of a norm's weight and bias, of a bias, of a scale are such sums. Shares are fp32;
they are added in a fixed order, without atomics, and the sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import cdiv, share_tile


@triton.jit
def add_shares_kernel(
    shares, sums, widths, programs, TILE_ROWS: tl.constexpr, TILE_WIDTH: tl.constexpr
):
    # A program has a few columns of one sum: all of its shares are in flight at once.
    row = tl.arange(0, TILE_ROWS)
    first_col = tl.program_id(0) * TILE_WIDTH
    col = first_col + tl.arange(0, TILE_WIDTH)
    for i in tl.static_range(len(shares)):
        if (tl.program_id(1) == i) & (first_col < widths[i]):
            in_row = col < widths[i]
            total = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
            for first in range(0, programs, TILE_ROWS):
                share = (first + row).to(tl.int64)
                at = share[:, None] * widths[i] + col[None, :]
                mask = (share < programs)[:, None] & in_row[None, :]
                total += tl.load(shares[i] + at, mask=mask, other=0.0)
            total = tl.sum(total, axis=0)
            tl.store(sums[i] + col, total.to(sums[i].dtype.element_ty), mask=in_row)


def shares_of(
    parameters: Sequence[Tensor | None], programs: int, device: torch.device
) -> list[Tensor | None]:
    """Where ``programs`` leave their shares of the gradient of each parameter,
    [programs, *its shape]; None where there is no parameter."""
    return [
        None if p is None else torch.empty((programs, *p.shape), dtype=torch.float32, device=device)
        for p in parameters
    ]


def add_shares(
    shares: Sequence[Tensor | None], parameters: Sequence[Tensor | None], like: Tensor
) -> list[Tensor]:
    """The gradient of each parameter in its shape and dtype: the sum of its :func:`shares_of`.

    Where there is no parameter, an empty fp32 tensor on ``like``'s device.
    """
    sums = [
        like.new_empty(0 if p is None else p.shape, dtype=torch.float32 if p is None else p.dtype)
        for p in parameters
    ]
    given = tuple(share for share in shares if share is not None)
    if given:
        wanted = tuple(s for s, p in zip(sums, parameters, strict=True) if p is not None)
        widths = tuple(map(Tensor.numel, wanted))
        programs = len(given[0])
        tile = share_tile(programs)
        add_shares_kernel[(cdiv(max(widths), tile.width), len(given))](
            given, wanted, widths, programs, **tile.launch_options()
        )
    return sums
