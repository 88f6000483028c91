"""One comparison: several ways to do the same work on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Called once per round; returns what the error against the first way is measured on.
Way = Callable[[], Tensor]


@dataclass(frozen=True)
class Setting:
    """Where a case runs. ``tiny`` shrinks its shapes: does every way run, anywhere?"""

    device: str
    tiny: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """bf16 on a GPU; fp32 on a CPU, whose bf16 arithmetic is emulated."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


@dataclass
class Ways:
    """The ways by name, the first being the peer that ratios are taken against."""

    ways: dict[str, Way]
    what: str  # the work in words, with its shapes
    missing: dict[str, str] = field(default_factory=dict)  # peers that cannot run here, and why
    bytes_moved: int | None = None  # that the work must at least read and write


@dataclass(frozen=True)
class Case:
    """``build`` makes the ways. ``queued``: time the device alone, without the launches."""

    name: str
    build: Callable[[Setting], Ways]
    rounds: int = 41
    queued: bool = False
