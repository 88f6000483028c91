"""Result files: written whole, sealed by a checksum, and of one state of the code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acn_kernels.files import written_whole
from benchmarks.sealed import sealed, was_changed
from benchmarks.throughput.environment import sources


class Refused(ValueError):
    """A result file that the report does not take, and why."""


def write(file: Path, result: dict[str, Any]) -> None:
    with written_whole(file) as path:
        path.write_text(json.dumps(sealed(result), indent=1) + "\n")


def read(file: Path) -> dict[str, Any]:
    """The sealed result in ``file``.

    Raises:
        Refused: it is no such result, or has been changed since it was written.
    """
    try:
        result = json.loads(file.read_text())
        changed = was_changed(result)
        del result["checksum"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Refused(f"{file} is no result of benchmarks.paper") from error
    if changed:
        raise Refused(f"{file} was changed after it was written: its checksum does not fit")
    return result


def read_all(folder: Path, code: str | None = None) -> list[dict[str, Any]]:
    """The results in ``folder``, which must be of this code (or of the digest ``code``).

    Raises:
        FileNotFoundError: there are none.
        Refused: a file was edited, or comes from another commit.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no result of benchmarks.paper")
    code, results = code or sources(), [read(file) for file in files]
    for file, result in zip(files, results, strict=True):
        environment = result["environment"]
        if environment["sources"] != code:
            raise Refused(
                f"{file} was measured with other code, at commit {environment['commit']}: "
                "run it again, or check that commit out"
            )
    return results


def is_current(file: Path, expected: dict[str, Any]) -> bool:
    """Whether ``file`` holds a result whose fields are those of ``expected``."""
    try:
        result = read(file)
    except (OSError, Refused):
        return False
    return all(result.get(key) == value for key, value in expected.items())


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Metrics by network and seed, of the results of single runs."""
    runs: dict[str, dict[str, Any]] = {}
    for part in parts:
        runs.setdefault(part["network"], {})[str(part["seed"])] = part["metrics"]
    return runs
