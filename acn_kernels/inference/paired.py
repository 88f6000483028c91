"""How far below the full network's accuracy another decision may lie, on the same samples.

Both are right or wrong on each sample, so what counts are the samples on which they differ:
``lost`` where only the full network is right, ``won`` where only the other is. The interval is the
score interval for paired proportions (Tango, Statistics in Medicine 17, 1998), which keeps its
level with few samples and with none that differ.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

_STEPS = 60  # of bisection: to the last bit of a number in [-1, 1]


class Paired(NamedTuple):
    """Counts of samples. won and lost as above; total of all."""

    lost: int
    won: int
    total: int

    @classmethod
    def of(cls, full_right: Tensor, other_right: Tensor) -> Paired:
        """From two [N] booleans."""
        lost = (full_right & ~other_right).sum().item()
        won = (~full_right & other_right).sum().item()
        return cls(lost, won, len(full_right))

    @property
    def drop(self) -> float:
        """Accuracy that is lost, on these samples."""
        return (self.lost - self.won) / self.total

    def score(self, drop: float) -> float:
        """Standard normal where ``drop`` is the true one; falls with it."""
        above = self.lost - self.won - self.total * drop
        variance = self.total * (2 * self._won_share(drop) + drop * (1 - drop))
        if variance <= 0:
            return math.copysign(math.inf, above) if above else 0.0
        return above / math.sqrt(variance)

    def interval(self, z: float) -> tuple[float, float]:
        """The drops that z deviations do not exclude."""
        return self._crossing(z), self._crossing(-z)

    def _won_share(self, drop: float) -> float:
        """The likeliest probability of ``won`` where that of ``lost`` is higher by ``drop``."""
        if drop < 0:  # the same question with the two decisions exchanged
            return Paired(self.won, self.lost, self.total)._won_share(-drop) - drop
        a = 2 * self.total
        b = -self.lost - self.won + (a - self.lost + self.won) * drop
        c = -self.won * drop * (1 - drop)
        return (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)

    def _crossing(self, level: float) -> float:
        low, high = -1.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.score(middle) > level else (low, middle)
        return (low + high) / 2


def least_samples(max_drop: float, z: float) -> float:
    """How many samples it takes to exclude ``max_drop`` where none of them differs."""
    return z * z * (1 - max_drop) / max_drop if max_drop else math.inf
