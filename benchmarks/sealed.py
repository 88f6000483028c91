"""A result with the checksum of everything else in it, so that a change shows."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sealed(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "checksum": _checksum(result)}


def was_changed(result: dict[str, Any]) -> bool:
    """Whether the checksum does not fit; what has none cannot tell."""
    rest = {key: value for key, value in result.items() if key != "checksum"}
    return result.get("checksum", _checksum(rest)) != _checksum(rest)


def _checksum(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
