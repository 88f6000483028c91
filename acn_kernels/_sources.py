"""What the compiled extension is made of, and a digest of it. setup.py runs this file too, before
there is a package to import."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SUFFIXES = (".cpp", ".h", ".cu", ".cuh")
_PROGRAMS = ("tests", "tools")  # what CMake builds besides


def files_of(csrc: Path, cuda: bool) -> list[Path]:
    """Sources and headers in their order, with those of the CUDA kernels or without."""
    found = []
    for path in sorted(csrc.rglob("*")):
        name = path.relative_to(csrc)
        if path.suffix in _SUFFIXES and name.parts[0] not in _PROGRAMS:
            found += [path] if cuda or "cuda" not in str(name) else []
    return found


def digest_of(csrc: Path, cuda: bool) -> str:
    """16 hexadecimal digits of the files' names and contents."""
    digest = hashlib.sha256()
    for path in files_of(csrc, cuda):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(csrc).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
