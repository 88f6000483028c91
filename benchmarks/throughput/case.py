"""One comparison: several ways to do the same work on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# A way is built once (weights, compilation), then called once per round; it returns what the
# error against the first way is measured on.
Way = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """``build`` returns the ways by name; the first is the peer that ratios are taken against."""

    name: str
    what: str  # the work in words, with its shapes
    build: Callable[[str], dict[str, Way]]  # device -> ways
    rounds: int = 15
