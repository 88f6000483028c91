"""Launch shapes of the kernels: every heuristic by size and device in one place."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

# One program holds whole rows in registers; a wider one spills in the backward pass.
MAX_WIDTH = 4096
# Sources of the long sum that one launch reads; deeper stacks carry the sum on in fp32.
MAX_SOURCES = 16
# Linear stacks hold the rows of x and of the sum on chip.
MAX_STACK_WIDTH = 256
LINEAR_STACK_STAGES = 2  # the next layer's weight is on its way during a product
_TILE_ELEMENTS = 2048
_MAX_COLUMNS = 1024
_ELEMENTS_PER_THREAD = 8  # one 16-byte access in half precision
# For less time in the reductions across a row, and where one access leaves too little in flight.
_MORE_ELEMENTS_PER_THREAD = 16
# Left to itself, ptxas spills a few bytes to reach an occupancy that these kernels do not need.
_REGISTERS_PER_THREAD = 96
JOIN_REGISTERS_PER_THREAD = 128  # all sources' loads are in flight at once
# Where a program keeps its share of sums over all rows, and walks the rows: many small tiles at
# once hide the reductions across a row of one behind the loads of others.
_SUM_TILE_ELEMENTS = 1024
_SUM_REGISTERS_PER_THREAD = 128
_CROWDED_SUM_REGISTERS_PER_THREAD = 168
_REGISTERS_PER_MULTIPROCESSOR = 65536
# Where those shares are added: narrow tiles make enough programs, high ones few turns.
_SHARE_ROWS = 1024
_SHARE_COLUMNS = 8  # 32 bytes, the least that memory hands out at once
_PROGRAMS_PER_MULTIPROCESSOR = 2
# An exit's program works alone on its sample: much in flight at once, in the registers there are.
_EXIT_TILE_ELEMENTS = 8192
_EXIT_ELEMENTS_PER_THREAD = 32
_EXIT_REGISTERS_PER_THREAD = 128

_MOST_REGISTERS = 255

# A larger sample does not fit the registers of a multiprocessor beside its own long sum.
MAX_SAMPLE_TOKENS = 64
MAX_SAMPLE_WIDTH = 256
MAX_SAMPLE_ELEMENTS = 8192
_SAMPLE_BYTES_PER_WARP = 4096  # in half precision 64 registers of a thread for each fp32 tile
_LEAST_PRODUCT = 16  # sides of a tile in a matrix product
_MIXER_STAGES = 3  # weights of so many chunks are on their way or in use
_WEIGHT_BYTES = 96 * 1024  # of shared memory for them: two programs share 228 KB
_CLOSING_BYTES = 128 * 1024
# See has_little_shared: there, samples with rows as long as that need smaller launches.
_LITTLE_SHARED_BYTES = 128 * 1024
_LITTLE_CLOSING_BYTES = 64 * 1024
_LONG_ROW_BYTES = 512


# Triton's own take two microseconds each, of which a launch would need ten.
def cdiv(size: int, part: int) -> int:
    """How many ``part`` it takes for ``size``."""
    return -(-size // part)


def power_of_2(size: int) -> int:
    """The least power of two that is at least ``size``."""
    return 1 << max(0, size - 1).bit_length()


def packed(x: Tensor | None) -> Tensor | None:
    """x, which a kernel reads as one run of numbers: a weight, a bias, scales, flags."""
    return None if x is None else x.contiguous()


def has_little_shared(device: torch.device) -> bool:
    """Whether a block takes far less shared memory than on sm_80, with its 163 KB: 99 KB on GPUs of
    compute capability 8.6, 8.9 and 12.0."""
    if device.type != "cuda":  # the interpreter
        return False
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin < _LITTLE_SHARED_BYTES


class RowTile(NamedTuple):
    """A tile of ``rows`` whole rows of ``width`` (a power of two, at least D) elements."""

    rows: int
    width: int
    warps: int
    registers: int | None = _REGISTERS_PER_THREAD

    def launch_options(self, registers: int | None = None) -> dict[str, int | None]:
        """The keyword arguments that every launch over this tile passes."""
        return {
            "TILE_ROWS": self.rows,
            "TILE_WIDTH": self.width,
            "num_warps": self.warps,
            "maxnreg": registers or self.registers,
        }


def row_tile(width: int) -> RowTile:
    """The tile for rows of ``width`` elements."""
    return _rows(width, _TILE_ELEMENTS, _ELEMENTS_PER_THREAD, _REGISTERS_PER_THREAD)


def single_row_tile(width: int) -> RowTile:
    """The same where one tensor alone is read."""
    return _rows(width, _TILE_ELEMENTS, _MORE_ELEMENTS_PER_THREAD, None)


def row_sum_tile(width: int, dtype: torch.dtype, crowded: bool = False) -> RowTile:
    """The same where sums over all rows are kept beside, of tensors of ``dtype``; ``crowded``
    where there is more to it. See :func:`row_sum_programs`."""
    if width % 16:  # numbers that come one by one take addresses and masks of their own
        return _rows(width, _SUM_TILE_ELEMENTS, _ELEMENTS_PER_THREAD, _SUM_REGISTERS_PER_THREAD)
    crowded = crowded or dtype == torch.float32
    registers = _CROWDED_SUM_REGISTERS_PER_THREAD if crowded else _SUM_REGISTERS_PER_THREAD
    return _rows(width, _SUM_TILE_ELEMENTS, _MORE_ELEMENTS_PER_THREAD, registers)


@functools.cache
def _rows(width: int, elements: int, per_thread: int, registers: int | None) -> RowTile:
    padded = power_of_2(width)
    rows = max(1, elements // padded)
    warps = min(32, max(elements // 512, rows * padded // (32 * per_thread)))
    return RowTile(rows, padded, warps, registers)


def column_tile(width: int) -> RowTile:
    """The tile of an elementwise kernel, which may split rows of ``width`` elements."""
    return single_row_tile(min(width, _MAX_COLUMNS))


def column_sum_tile(width: int) -> RowTile:
    """The same where sums over all rows are kept beside."""
    return _rows(
        min(width, _MAX_COLUMNS // 2),
        _TILE_ELEMENTS,
        _MORE_ELEMENTS_PER_THREAD,
        _REGISTERS_PER_THREAD,
    )


def share_tile(shares: int) -> RowTile:
    """The tile for adding as many ``shares`` of sums over all rows."""
    rows = min(_SHARE_ROWS, power_of_2(shares))
    warps = rows * _SHARE_COLUMNS // (32 * _MORE_ELEMENTS_PER_THREAD)
    return RowTile(rows, _SHARE_COLUMNS, max(1, warps), None)


class StackTile(NamedTuple):
    """``rows`` rows that one program takes through all layers of a narrow stack, and the
    power-of-two ``width`` of the weights that it multiplies by, ``chunk`` outputs at a time."""

    rows: int
    width: int
    chunk: int
    warps: int
    registers: int = _MOST_REGISTERS  # or ptxas spills for an occupancy that nobody asked of it

    def launch_options(self, stages: int) -> dict[str, int]:
        """The keyword arguments that every launch over this tile passes."""
        return {
            "TILE_ROWS": self.rows,
            "TILE_WIDTH": self.width,
            "CHUNK": self.chunk,
            "num_warps": self.warps,
            "num_stages": stages,
            "maxnreg": self.registers,
        }

    def scratch(self, x: Tensor, rows: int) -> Tensor:
        """Where the chunks of each program's ``rows`` meet; empty where there is one chunk."""
        programs = cdiv(rows, self.rows) if self.chunk < self.width else 0
        return x.new_empty((programs, self.rows, self.width))


def stack_tile(width: int) -> StackTile:
    """The tile of a linear stack of ``width`` wide layers."""
    padded = max(16, power_of_2(width))
    # 64 rows are the least that fill sm_90's matrix instruction, and four warps what issues it;
    # x, the sum and a product fit their registers up to 128 columns.
    if padded > 128:
        return StackTile(32, padded, 64, 8)
    return StackTile(64, padded, padded, 4)


def stack_backward_tile(
    width: int, scaled: bool, dtype: torch.dtype, device: torch.device
) -> StackTile:
    """The same for its backward pass, which has more to hold, with ``scaled`` where the scales have
    gradients: three programs of few rows share a multiprocessor, each waiting in its own time."""
    tile = stack_tile(width)
    if tile.width != 128:
        return tile
    if dtype == torch.float32 and has_little_shared(device):  # two whole weights do not fit
        return tile._replace(rows=32, chunk=64)
    return tile._replace(rows=32, registers=tile.registers if scaled else 168)


def linear_stack_backward_stages(tile: StackTile, activation: str) -> int:
    """Two where the next weight can be on its way without a spill on sm_80, sm_90 and sm_100."""
    whole = tile.chunk == tile.width
    return 1 if whole and activation in ("silu", "gelu_tanh") else LINEAR_STACK_STAGES


def dot_precision(dtype: torch.dtype) -> str:
    """How a product takes its operands: fp32 in full, as torch does unless told otherwise."""
    return "ieee" if dtype == torch.float32 else "tf32"


class MixerTile(NamedTuple):
    """A sample of ``tokens`` x ``width`` in one program, hidden units ``*_chunk`` at a time."""

    tokens: int
    width: int
    token_chunk: int
    channel_chunk: int
    warps: int
    stages: int

    def launch_options(self) -> dict[str, int]:
        """The keyword arguments that every launch over this tile passes."""
        return {
            "TILE_T": self.tokens,
            "TILE_D": self.width,
            "TOKEN_CHUNK": self.token_chunk,
            "CHANNEL_CHUNK": self.channel_chunk,
            "num_warps": self.warps,
            "num_stages": self.stages,
            # Left to itself, ptxas spills in small tiles to reach a higher occupancy.
            "maxnreg": _MOST_REGISTERS,
        }


def mixer_tile(
    tokens: int,
    width: int,
    hidden: tuple[int, int],
    dtype: torch.dtype,
    backward: bool,
    device: torch.device,
) -> MixerTile:
    """The tile for samples of ``tokens`` x ``width`` elements and the ``hidden`` widths of the two
    MLPs; fewer hidden units at a time in the ``backward`` pass, which holds more for each.

    Few warps and their registers, a few of them spilled, leave room for a second program, which
    works while the first one waits: twice the speed of a sample spread over twice the warps.
    """
    tokens, width = _product_side(tokens), _product_side(width)
    # In bytes: in fp32 the operands of products take registers too.
    warps = max(2, tokens * width * dtype.itemsize // _SAMPLE_BYTES_PER_WARP)
    most, stages = 32 if backward else 64, _MIXER_STAGES
    if width * dtype.itemsize >= _LONG_ROW_BYTES and has_little_shared(device):
        if dtype == torch.float32:  # whose products find both operands in shared memory
            most, stages = _LEAST_PRODUCT, 1
        elif backward:
            stages = 2
    unit = 2 * width * dtype.itemsize * _MIXER_STAGES  # of a hidden unit's two weights
    chunk = min(most, max(_LEAST_PRODUCT, _WEIGHT_BYTES // unit), _product_side(hidden[1]))
    token_chunk = min(most, _product_side(hidden[0]))
    return MixerTile(tokens, width, token_chunk, chunk, power_of_2(warps), stages)


def mixer_tile_obstacle(
    tokens: int, width: int, dtype: torch.dtype, closing: bool, device: torch.device
) -> str | None:
    """Why no tile holds a sample of ``tokens`` x ``width``; None where one does."""
    if tokens > MAX_SAMPLE_TOKENS or width > MAX_SAMPLE_WIDTH:
        return (
            f"a sample of {tokens} x {width} is too large for one program: "
            f"up to {MAX_SAMPLE_TOKENS} tokens and a width of {MAX_SAMPLE_WIDTH}"
        )
    if _product_side(tokens) * _product_side(width) > MAX_SAMPLE_ELEMENTS:
        return (
            f"a sample of {tokens} x {width} is too large for one program: up to "
            f"{MAX_SAMPLE_ELEMENTS} elements, both sides rounded up to powers of two"
        )
    weight, most = _product_side(width) ** 2 * dtype.itemsize if closing else 0, _CLOSING_BYTES
    if weight > _LITTLE_CLOSING_BYTES and has_little_shared(device):
        most = _LITTLE_CLOSING_BYTES
    if weight > most:
        return (
            f"the closing step's weight, {width} x {width} in {dtype}, is too large for shared "
            f"memory: up to {most} bytes, both sides rounded up to powers of two"
        )
    return None


def _product_side(size: int) -> int:
    return max(_LEAST_PRODUCT, power_of_2(size))


class ExitTile(NamedTuple):
    """Tokens and classes that an exit's program takes at a time, rows of ``width`` elements."""

    tokens: int
    classes: int
    width: int
    warps: int

    def launch_options(self) -> dict[str, int]:
        """The keyword arguments that every launch over this tile passes."""
        return {
            "TILE_TOKENS": self.tokens,
            "TILE_CLASSES": self.classes,
            "TILE_WIDTH": self.width,
            "num_warps": self.warps,
            "maxnreg": _EXIT_REGISTERS_PER_THREAD,
        }


def exit_tile(tokens: int, width: int, classes: int) -> ExitTile:
    """The tile for a sample of ``tokens`` x ``width`` elements and a head of ``classes``."""
    padded = power_of_2(width)
    most = max(1, _EXIT_TILE_ELEMENTS // padded)
    tokens = min(most, power_of_2(max(1, tokens)))
    classes = min(most, power_of_2(classes))
    warps = max(tokens, classes) * padded // (32 * _EXIT_ELEMENTS_PER_THREAD)
    return ExitTile(tokens, classes, padded, min(8, max(1, warps)))


def copy_tile(width: int) -> RowTile:
    """The tile for copying samples of ``width`` elements, which may take several tiles each."""
    padded = min(_TILE_ELEMENTS, power_of_2(width))
    return RowTile(_TILE_ELEMENTS // padded, padded, 4)


def persistent_programs(
    device: torch.device, tiles: int, each: int = _PROGRAMS_PER_MULTIPROCESSOR
) -> int:
    """Programs of a kernel that walks the tiles in strides, ``each`` for a multiprocessor."""
    if device.type != "cuda":  # the interpreter
        return min(tiles, 3)
    return min(tiles, each * _multiprocessors(device))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def row_sum_programs(device: torch.device, rows: int, tile: RowTile, columns: int = 1) -> int:
    """Programs of a kernel that walks ``rows`` in tiles of :func:`row_sum_tile`, for each of
    ``columns`` blocks of columns: as many as run at once."""
    each = max(1, _REGISTERS_PER_MULTIPROCESSOR // (32 * tile.warps * tile.registers))
    tiles = cdiv(rows, tile.rows)
    return min(tiles, cdiv(persistent_programs(device, tiles * columns, each), columns))


def as_rows(x: Tensor) -> Tensor:
    """x [..., D] as [N, D] with packed rows: a view where the strides allow, else a copy.

    Expanded tensors (the gradient of a sum, say) are copied: kernels want distinct rows.
    """
    flat = x.reshape(-1, x.shape[-1])
    packed = flat.stride(1) == 1 and flat.stride(0) >= flat.shape[1]
    return flat if packed else flat.contiguous()
