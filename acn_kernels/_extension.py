"""The optional compiled extension: the one place that imports it."""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

_NAME = "acn_kernels._native"
_MARK = re.compile(rb"acn_kernels built for torch (\d+\.\d+), cuda (cpu|\d+\.\d+);")

_module: ModuleType | None = None
_state = "not built (python setup.py build_ext --inplace builds it)"


class BuiltFor(NamedTuple):
    """What an extension was compiled against: torch "2.11", cuda "13.0" or "cpu"."""

    torch: str
    cuda: str

    def __str__(self) -> str:
        return f"torch {self.torch} and CUDA {self.cuda}" if self.cuda != "cpu" else (
            f"torch {self.torch}"
        )  # fmt: skip


def built_for(path: Path) -> BuiltFor | None:
    """What the library says of itself, read from the file: nothing of it is loaded.

    None where it says nothing; raises OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            mark = _MARK.search(content)
            return mark and BuiltFor(*(part.decode() for part in mark.groups()))


def _obstacle(wanted: BuiltFor | None) -> str | None:
    """Why an extension built for ``wanted`` must not be loaded into this process."""
    here = ".".join(torch.__version__.split(".")[:2])
    if wanted is None:
        return f"it does not say for which torch it was built, this is torch {torch.__version__}"
    # An extension without CUDA kernels calls nothing that a build of torch with CUDA lacks.
    if wanted.torch != here or wanted.cuda not in ("cpu", torch.version.cuda):
        cuda = f" for CUDA {torch.version.cuda}" if torch.version.cuda else " without CUDA"
        return f"built for {wanted}, this is torch {torch.__version__}{cuda}"
    return None


def _refuse(reason: str) -> None:
    global _state
    _state = f"refused: {reason}"
    warnings.warn(f"acn_kernels: compiled extension {_state}", stacklevel=3)


def _load() -> None:
    global _module, _state
    try:
        spec = importlib.util.find_spec(_NAME)
    except ValueError:  # somebody put None in its place
        spec = None
    if spec is None or spec.origin is None:
        return
    try:
        wanted = built_for(Path(spec.origin))
        obstacle = _obstacle(wanted)
        if obstacle:
            return _refuse(obstacle)
        _module = importlib.import_module(_NAME)
    except (ImportError, OSError) as error:  # another Python, a damaged file, a missing library
        return _refuse(f"it does not load with torch {torch.__version__} ({error})")
    _state = f"loaded, built for {wanted}"


_load()


def module() -> ModuleType | None:
    """The extension, or None where it is missing or was built for another torch."""
    return _module


def state() -> str:
    """One line: loaded, not built, or refused and why."""
    return _state


def has_cuda_kernels() -> bool:
    """Whether the extension is loaded and has kernels for CUDA tensors."""
    return _module is not None and _module.cuda_version != "cpu"
