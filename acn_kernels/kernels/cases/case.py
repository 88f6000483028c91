"""A launch, and what its machine code may take."""

from __future__ import annotations

from typing import NamedTuple

from acn_kernels.kernels.recorder import Launch


class RegisteredLaunch(NamedTuple):
    """``tensor_cores``: a matrix instruction must be there. ``max_shared_bytes``: per block;
    ``max_spill_bytes``: per thread."""

    launch: Launch
    tensor_cores: bool = False
    max_shared_bytes: int = 48 * 1024  # what every device gives without being asked
    max_spill_bytes: int = 0
