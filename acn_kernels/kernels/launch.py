"""Launch shapes of the row-wise kernels: every heuristic by size and device in one place."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

# One program holds whole rows in registers; a wider one spills in the backward pass.
MAX_WIDTH = 4096
# Sources of the long sum that one launch reads; deeper stacks carry the sum on in fp32.
MAX_SOURCES = 16
_TILE_ELEMENTS = 2048
_ELEMENTS_PER_THREAD = 8  # one 16-byte access in half precision
# Left to itself, ptxas spills a few bytes to reach an occupancy that these kernels do not need.
_REGISTERS_PER_THREAD = 96
JOIN_REGISTERS_PER_THREAD = 128  # all sources' loads are in flight at once
_PROGRAMS_PER_MULTIPROCESSOR = 2


class RowTile(NamedTuple):
    """A tile of ``rows`` whole rows of ``width`` (a power of two, at least D) elements."""

    rows: int
    width: int
    warps: int

    def launch_options(self, registers: int = _REGISTERS_PER_THREAD) -> dict[str, int]:
        """The keyword arguments that every launch over this tile passes."""
        return {
            "TILE_ROWS": self.rows,
            "TILE_WIDTH": self.width,
            "num_warps": self.warps,
            "maxnreg": registers,
        }


def row_tile(width: int) -> RowTile:
    """The tile for rows of ``width`` elements."""
    padded = triton.next_power_of_2(width)
    rows = max(1, _TILE_ELEMENTS // padded)
    warps = min(32, max(4, rows * padded // (32 * _ELEMENTS_PER_THREAD)))
    return RowTile(rows, padded, warps)


def persistent_programs(device: torch.device, tiles: int) -> int:
    """Programs of a kernel that walks the tiles in strides, for sums across all rows."""
    if device.type != "cuda":  # the interpreter
        return min(tiles, 3)
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return min(tiles, count * _PROGRAMS_PER_MULTIPROCESSOR)


def as_rows(x: Tensor) -> Tensor:
    """x [..., D] as [N, D] with packed rows: a view where the strides allow, else a copy.

    Expanded tensors (the gradient of a sum, say) are copied: kernels want distinct rows.
    """
    flat = x.reshape(-1, x.shape[-1])
    packed = flat.stride(1) == 1 and flat.stride(0) >= flat.shape[1]
    return flat if packed else flat.contiguous()
