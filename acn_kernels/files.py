"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, moved onto it when the block ends without an error.

    However the block ends, nothing half-written stands under ``path``, and what stood there
    before an error or an interrupt stands there still.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: str | os.PathLike, name: str) -> None:
    """Raises ValueError, which names the argument ``name``, where no file can be written into
    ``folder``, there already or not; for before the work whose results go there. Leaves nothing."""
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{name}: no file can be written into {str(folder)!r}: {error.strerror}"
        ) from error
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def check_elsewhere(folder: str | os.PathLike, source: str | os.PathLike) -> None:
    """Raises ValueError where what is written into ``folder`` would replace ``source`` itself."""
    if Path(folder).resolve() == Path(source).resolve():
        raise ValueError(f"DIR is {str(folder)!r}, the model itself; it takes another folder")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
