"""What changes from step to step: functions of the step alone, so that resuming needs no more."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

__all__ = ["GROWING", "BottomUpAlpha", "DepthSchedule", "FreezeSchedule", "warmup_cosine"]


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """The factor on the learning rate at ``step``: linear over ``warmup`` steps, then a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class DepthSchedule(NamedTuple):
    """How many of the layers take part in a step: the others are neither run nor trained.

    ``stages``: (from which share of the training on, share of the layers), in order, the first one
    from 0 on. ((0, 0.5), (0.3, 1)) grows the network; ((0, 1), (0.6, 0.5)) ends on its lower half,
    and what is trained then is the network cut there.
    """

    stages: tuple[tuple[float, float], ...]

    def checked(self) -> DepthSchedule:
        """This schedule.

        Raises:
            ValueError: the stages do not begin at 0, are out of order, or a share is not in (0, 1].
        """
        starts = [start for start, _ in self.stages]
        rising = all(one < next_ for one, next_ in itertools.pairwise(starts))
        if not starts or starts[0] != 0 or not rising or not starts[-1] < 1:
            raise ValueError(
                f"stages begin at {starts}; they take 0 and then rising shares below 1"
            )
        for _, share in self.stages:
            if not 0 < share <= 1:
                raise ValueError(
                    f"a stage has {share} of the layers; it takes more than 0, up to 1"
                )
        return self

    def at(self, progress: float, layers: int) -> int:
        """The layers that take part after the share ``progress`` of the training."""
        share = next(s for start, s in reversed(self.stages) if start <= progress)
        return max(1, math.ceil(share * layers - 1e-9))


# Of the ways in the small preset of benchmarks/paper/experiments/cheaper.py the soonest at the
# residual twin's accuracy, and of those in the twin's time the one with the best lower half. How it
# does on more images: docs/train.md.
GROWING = DepthSchedule(((0.0, 0.5), (0.25, 0.75), (0.5, 1.0)))


class FreezeSchedule(NamedTuple):
    """The lowest layers stop learning one after the other, and cost no backward pass any more:
    none up to the share ``start`` of the training, ``layers`` of them (a share) at its end. Of what
    lies below them nothing learns either."""

    start: float
    layers: float

    def checked(self) -> FreezeSchedule:
        """This schedule; raises ValueError where a share is not in [0, 1]."""
        return _checked_shares(self)

    def at(self, progress: float, layers: int) -> int:
        """How many of the lowest layers are frozen after the share ``progress``."""
        if progress < self.start or self.start >= 1:
            return 0
        return int(self.layers * layers * (progress - self.start) / (1 - self.start) + 1e-9)


class BottomUpAlpha(NamedTuple):
    """Every layer has an alpha of its own: it goes from 0 to ``end``, one layer after the other
    from the bottom up, over the first ``fraction`` of the training. What lies above the front is
    a residual network on top of an ACN that grows."""

    end: float = 1.0
    fraction: float = 0.5

    def checked(self) -> BottomUpAlpha:
        """This schedule; raises ValueError where ``end`` or ``fraction`` is not in [0, 1]."""
        return _checked_shares(self)

    def at(self, progress: float, layers: int) -> tuple[float, ...]:
        """alpha of layers[0], layers[1], ... after the share ``progress``."""
        front = layers if progress >= self.fraction else layers * progress / self.fraction
        return tuple(self.end * min(max(front - i, 0.0), 1.0) for i in range(layers))


def _checked_shares(schedule):
    for name, value in schedule._asdict().items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name} of the {type(schedule).__name__} is {value}; it takes a number from 0 to 1"
            )
    return schedule
