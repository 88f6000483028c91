"""timm where torchvision's compiled operators belong to another torch."""

from __future__ import annotations

import pytest

from benchmarks.torchvision_schemas import define_torchvision_schemas


def import_timm():
    """The package timm; skips the test where it is not installed."""
    define_torchvision_schemas()
    return pytest.importorskip("timm")
