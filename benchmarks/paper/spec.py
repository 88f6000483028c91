"""What an experiment is, as plain data: networks, how they are trained, what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.training.schedules import DepthSchedule, FreezeSchedule
from acn_kernels.training.trainer import Recipe

if TYPE_CHECKING:
    from benchmarks.paper.trained import Context

ALIKE = 1.0  # a point of accuracy
PRESETS = ("smoke", "small", "paper")
Metrics = dict[str, Any]  # numbers, and lists of numbers for pictures


@dataclass(frozen=True)
class Data:
    """A data set, or part of it.

    name: "digits", "cifar10", "cifar100" or "fashion". classes: which of them, relabelled 0, 1, ..
    (None: all). train, test: the first so many samples (None: all); per_class: the first so many
    training samples of each class.
    """

    name: str
    train: int | None = None
    test: int | None = None
    classes: tuple[int, ...] | None = None
    per_class: int | None = None


@dataclass(frozen=True)
class Training:
    """Everything that a trained network follows from, beside its seed and the code.

    model: a preset of acn_kernels.models. changes: to its configuration, as sorted pairs. loss: a
    name in benchmarks.paper.trained.LOSSES. track: keep the gradient norms of every epoch.
    """

    data: Data
    model: str
    changes: tuple[tuple[str, Any], ...]
    recipe: Recipe
    loss: str = "final"
    alpha: AlphaSchedule | None = None
    depth: DepthSchedule | None = None
    freeze: FreezeSchedule | None = None
    track: bool = False


@dataclass(frozen=True)
class Plan:
    """An experiment under one preset: a training for each network, and what else it takes."""

    trainings: Mapping[str, Training]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One of the paper's claims: ``metric`` of the network ``of`` differs from that of ``against``.

    sign: +1 where the paper finds more of it in ``of``, -1 where less, 0 where it finds them
    equal, which here is: ``of`` is less than ALIKE below. paper: the two numbers that the paper
    gives, in the unit of the metric times ``scale``; None where it shows a picture.
    """

    what: str
    metric: str
    of: str
    against: str
    sign: int
    paper: tuple[float, float] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Experiment:
    """note: where it deviates from the paper, in words. measure: (context, plan, network)."""

    name: str
    title: str
    plan: Callable[[str], Plan]
    measure: Callable[[Context, Plan, str], Metrics]
    rows: tuple[Row, ...]
    note: str = ""
