"""What changes from step to step: functions of the step alone, so that resuming needs no more."""

from __future__ import annotations

import math
from typing import NamedTuple

from acn_kernels.validation import check_alpha


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """The factor on the learning rate at ``step``: linear over ``warmup`` steps, then a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class AlphaSchedule(NamedTuple):
    """alpha goes from ``start`` to ``end`` in a straight line over the first ``fraction`` of the
    training, and stays there. (0, 1, 0.5): a residual network that becomes an ACN by half-time."""

    start: float = 1.0
    end: float = 1.0
    fraction: float = 0.0

    @classmethod
    def parse(cls, text: str) -> AlphaSchedule:
        """From "start:end:fraction", or from one number: constant.

        Raises:
            ValueError: ``text`` is neither, or a number is not in [0, 1].
        """
        try:
            numbers = [float(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 3):
            raise ValueError(f"alpha is {text!r}; it takes start:end:fraction, or one number")
        start, end, fraction = numbers if len(numbers) == 3 else (*numbers, *numbers, 0.0)
        if not 0 <= fraction <= 1:
            raise ValueError(f"the fraction of alpha is {fraction}; it takes a number from 0 to 1")
        return cls(check_alpha(start), check_alpha(end), fraction)

    def at(self, progress: float) -> float:
        """alpha after the share ``progress`` of the training, in [0, 1]."""
        if progress >= self.fraction:
            return self.end
        return self.start + (self.end - self.start) * progress / self.fraction


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
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
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


class FreezeSchedule(NamedTuple):
    """The lowest layers stop learning one after the other, and cost no backward pass any more:
    none up to the share ``start`` of the training, ``layers`` of them (a share) at its end."""

    start: float
    layers: float

    def at(self, progress: float, layers: int) -> int:
        """How many of the lowest layers are frozen after the share ``progress``."""
        if progress < self.start or self.start >= 1:
            return 0
        return int(self.layers * layers * (progress - self.start) / (1 - self.start) + 1e-9)
