"""What a file of weights holds, from its header, before anything of that size is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor


class Stored(NamedTuple):
    """dtype: as safetensors names it."""

    shape: tuple[int, ...]
    dtype: str


def stored_in(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Stored(tuple(p.get_shape()), p.get_dtype()) for name, p in parts.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no file of weights: {error}") from error


def check_stored(path: Path, stored: Mapping[str, Stored], wanted: Mapping[str, Tensor]) -> None:
    """Raises ValueError, naming the first of them, where ``path`` holds other tensors than a model
    wants: other names or shapes, or integers for floating point."""
    for name in sorted({*stored, *wanted}):
        if name not in stored or name not in wanted:
            what = "lacks" if name in wanted else "holds"
            raise ValueError(f"{path} is not of this model: it {what} {name}")
        (shape, dtype), takes = stored[name], tuple(wanted[name].shape)
        if shape != takes:
            raise ValueError(
                f"{path} is not of this model: {name} has shape {shape}; it takes {takes}"
            )
        if wanted[name].is_floating_point() != dtype.startswith(("F", "BF")):
            raise ValueError(
                f"{path} is not of this model: {name} is {dtype}; it takes {wanted[name].dtype}"
            )
