"""What the commands check before they measure, so that a mistake costs one line and no time."""

from __future__ import annotations

import math
from pathlib import Path

from acn_kernels.files import check_writable


def check_budget(seconds: float | None) -> None:
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"--budget is {seconds}; it takes a number of seconds")


def make_folder(option: str, folder: Path) -> None:
    check_writable(folder, option)
    folder.mkdir(parents=True, exist_ok=True)
