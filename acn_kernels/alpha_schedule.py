"""How alpha moves over a training, as a function of its progress alone."""

from __future__ import annotations

import numbers
from typing import NamedTuple

from acn_kernels.validation import check_alpha

__all__ = ["AlphaSchedule"]


class AlphaSchedule(NamedTuple):
    """alpha goes from ``start`` to ``end`` in a straight line over the first ``fraction`` of the
    training, and stays there. (0, 1, 0.5): a residual network that becomes an ACN by half-time."""

    start: float = 1.0
    end: float = 1.0
    fraction: float = 0.0

    @classmethod
    def checked(cls, start: float, end: float, fraction: float) -> AlphaSchedule:
        """Raises TypeError or ValueError where one of them is no number from 0 to 1."""
        if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real):
            raise TypeError(f"the fraction of the schedule is {fraction!r}; it takes 0 to 1")
        if not 0 <= fraction <= 1:
            raise ValueError(f"the fraction of the schedule is {fraction}; it takes 0 to 1")
        return cls(check_alpha(start), check_alpha(end), float(fraction))

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
        return cls.checked(*(numbers if len(numbers) == 3 else (*numbers, *numbers, 0.0)))

    def at(self, progress: float) -> float:
        """alpha after the share ``progress`` of the training, in [0, 1]."""
        if progress >= self.fraction:
            return self.end
        return self.start + (self.end - self.start) * progress / self.fraction
