"""anneal: alpha as a function of the progress of training."""

from __future__ import annotations

import numbers
from collections.abc import Callable

from torch import nn

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.convert.chain import Chain
from acn_kernels.convert.conversion import chains
from acn_kernels.convert.stack import ConvertedStack
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_alpha

Schedule = Callable[[float], float] | tuple[float, float, float]


class Annealing:
    """Sets alpha of all stacks and converted blocks of a model; made by :func:`anneal`."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self._holders = holders_of_alpha(model)
        self._schedule = schedule if callable(schedule) else _ramp(schedule).at

    def step(self, progress: float) -> float:
        """Sets alpha for the share ``progress`` of the training, in [0, 1], and returns it.

        Raises:
            TypeError, ValueError: ``progress``, or the schedule's alpha for it, is out of range.
        """
        if isinstance(progress, bool) or not isinstance(progress, numbers.Real):
            raise TypeError(f"progress is {progress!r}; it takes a number from 0 to 1")
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is {progress}; it takes a number from 0 to 1")
        alpha = check_alpha(self._schedule(float(progress)))
        for holder in self._holders:
            holder.alpha = alpha
        return alpha


def holders_of_alpha(model: nn.Module) -> list[Chain | FusedACNStack]:
    """The stacks of ``model``, and what its converted blocks, in a stack or not, share.

    Raises:
        ValueError: it has none.
    """
    stacks = (module for module in model.modules() if isinstance(module, FusedACNStack))
    holders = [*chains(model), *(s for s in stacks if not isinstance(s, ConvertedStack))]
    if not holders:
        raise ValueError(
            f"model is a {type(model).__name__} without alpha; it takes a FusedACNStack, a model "
            "with one, or a model from acn.convert"
        )
    return holders


def _ramp(schedule: tuple[float, float, float]) -> AlphaSchedule:
    try:
        start, end, fraction = schedule
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"schedule is {schedule!r}; it takes a function of progress or (start, end, fraction)"
        ) from error
    return AlphaSchedule.checked(start, end, fraction)


def anneal(model: nn.Module, schedule: Schedule) -> Annealing:
    """Moves alpha between the steps of a training; sets it for the beginning at once.

    ::

        annealing = acn.anneal(model, (0.0, 1.0, 0.5))  # residual at first, an ACN by half-time
        for step in range(steps):
            annealing.step(step / steps)
            ...

    Between the ends alpha is data, so that a compiled model is not compiled again for each value.
    Progress alone decides: a resumed training needs nothing else.

    Args:
        model: a FusedACNStack, a converted model, or anything that contains or wraps them.
        schedule: a function from progress in [0, 1] to alpha, or (start, end, fraction): a straight
            line over the first ``fraction`` of the training.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it takes an nn.Module")
    annealing = Annealing(model, schedule)
    annealing.step(0.0)
    return annealing
