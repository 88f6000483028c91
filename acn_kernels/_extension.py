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

from acn_kernels._sources import digest_of

_NAME = "acn_kernels._native"
_BUILT_FOR = re.compile(rb"acn_kernels built for torch (\d+\.\d+), cuda (cpu|\d+\.\d+);")
_BUILT_FROM = re.compile(rb"acn_kernels built from sources ([0-9a-f]{16});")
_CSRC = Path(__file__).parent.parent / "csrc"
_IN_SOURCE_TREE = (_CSRC / "include/acn").is_dir()
_BUILD = (
    "python setup.py build_ext --inplace builds it"
    if _IN_SOURCE_TREE
    else "a wheel for this torch brings it; the README says how to build one"
)

_module: ModuleType | None = None
_state = f"not built ({_BUILD})"


class BuiltFor(NamedTuple):
    """What an extension was compiled against: torch "2.11", cuda "13.0" or "cpu"."""

    torch: str
    cuda: str

    def __str__(self) -> str:
        return f"torch {self.torch} and CUDA {self.cuda}" if self.cuda != "cpu" else (
            f"torch {self.torch}"
        )  # fmt: skip


def _says(path: Path, what: re.Pattern[bytes]) -> tuple[str, ...] | None:
    """What the library says of itself, read from the file: nothing of it is loaded.

    None where it says nothing; raises OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = what.search(content)
            return found and tuple(part.decode() for part in found.groups())


def built_for(path: Path) -> BuiltFor | None:
    """What the library was compiled against by its own words; None where it says nothing."""
    said = _says(path, _BUILT_FOR)
    return said and BuiltFor(*said)


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


def _stale(path: Path, cuda: bool) -> bool:
    """Whether the library lies in a source tree and was built from other sources than that has."""
    if path.parent != Path(__file__).parent or not _IN_SOURCE_TREE:
        return False
    return _says(path, _BUILT_FROM) != (digest_of(_CSRC, cuda),)


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
        path = Path(spec.origin)
        wanted = built_for(path)
        obstacle = _obstacle(wanted)
        if obstacle:
            return _refuse(obstacle)
        if _stale(path, wanted.cuda != "cpu"):
            return _refuse(f"csrc has changed since it was built ({_BUILD})")
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
