"""One comparison: several ways to do the same work on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Called once per round; returns what the numeric error is measured on.
Way = Callable[[], Tensor]
# What a comparison may name in the place of a way: the time that copying as many bytes takes.
COPY_CEILING = "copy ceiling"
# Likewise: whichever way of other people's, doing the same work, has the least median.
FASTEST_PEER = "the fastest peer"
_PEER = "the peer"


class Missing(Exception):
    """Raised by a way that cannot run here (a package, a compiler, a GPU is not there); says why.

    Anything else that a way raises counts as its failure.
    """


@dataclass(frozen=True)
class Setting:
    """Where a case runs. ``tiny`` shrinks its shapes: does every way run, anywhere?"""

    device: str
    tiny: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """bf16 on a GPU; fp32 on a CPU, whose bf16 arithmetic is emulated."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def place(self) -> dict[str, object]:
        """Keyword arguments of ``Module.to`` and of the tensor factories."""
        return {"device": self.device, "dtype": self.dtype}

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


@dataclass(frozen=True)
class Entry:
    """One way. ``like``: the way whose value its own must equal, None where there is none.

    ours: computed by this package. same_work: does the FLOPs that are counted for the case.
    graphed: replays a CUDA graph, whose memory is set aside when it is recorded and cannot be
    compared with that of the others.
    """

    call: Way
    like: str | None
    ours: bool = False
    same_work: bool = True
    graphed: bool = False


@dataclass(frozen=True)
class Comparison:
    """A question that the case answers: ``way`` divided by ``factor`` times ``against``.

    at_most: the ratio aimed at; None where there is no target for this device.
    of: "time", or "kept": the memory kept for the backward pass.
    """

    what: str
    way: str
    against: str
    at_most: float | None = None
    of: str = "time"
    factor: float = 1.0


@dataclass
class Ways:
    """The ways in their order, the first being the peer that all ratios are taken against."""

    what: str  # the work in words, with its shapes
    bytes_moved: int | None = None  # that the work must at least read and write
    counted: Way | None = None  # what FLOPs are counted on, if not on the peer
    entries: dict[str, Entry] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)  # what a reader must know beside times
    quality: dict[str, float] = field(default_factory=dict)  # accuracies, where ways differ in them

    def add(self, name: str, call: Way, *, like: str | None = _PEER, **traits: bool) -> None:
        """A peer; its value must equal that of the way ``like``, by default the first one's."""
        first = next(iter(self.entries), name)
        self.entries[name] = Entry(call, first if like == _PEER else like, **traits)

    def add_ours(self, name: str, call: Way, **traits) -> None:
        """A way through this package."""
        self.add(name, call, ours=True, **traits)

    def compare(
        self, what: str, way: str, against: str, at_most: float | None = None, **more
    ) -> None:
        self.comparisons.append(Comparison(what, way, against, at_most, **more))


@dataclass(frozen=True)
class Case:
    """``build`` makes the ways. ``single_kernel``: time the device alone, without the launches,
    and with nothing of the inputs left in its caches."""

    name: str
    build: Callable[[Setting], Ways]
    rounds: int = 41
    single_kernel: bool = False
