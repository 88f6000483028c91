"""What an experiment is, as plain data: networks, how they are trained, what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.training.schedules import BottomUpAlpha, DepthSchedule, FreezeSchedule
from acn_kernels.training.trainer import Recipe

if TYPE_CHECKING:
    from benchmarks.paper.trained import Context

ALIKE = 1.0  # a point of accuracy
PRESETS = ("smoke", "small", "medium", "brief", "paper")
WITH_BRIEF = ("smoke", "small", "brief", "paper")  # of experiments that need no medium one
Metrics = dict[str, Any]  # numbers, and lists of numbers for pictures
Runs = dict[str, dict[str, Metrics]]  # by network, then by seed


@dataclass(frozen=True)
class Data:
    """A data set, or part of it.

    name: "digits", "cifar10", "cifar100", "fashion" or "sst2". classes: which of them, relabelled
    0, 1, .. (None: all). train, test: the first so many samples (None: all); per_class: the first
    so many training samples of each class. tokens: of every sentence, cut or padded to so many
    (0: these are images; digits have 64). words: in the vocabulary (0: MiniLM's pieces of words).
    held_out: which part of SST-2 to test on, "dev" or "test".
    """

    name: str
    train: int | None = None
    test: int | None = None
    classes: tuple[int, ...] | None = None
    per_class: int | None = None
    tokens: int = 0
    words: int = 0
    held_out: str = "dev"


@dataclass(frozen=True)
class Training:
    """Everything that a trained network follows from, beside its seed and the code.

    model: a preset of acn_kernels.models, or one of benchmarks.paper.text_models. changes: to its
    configuration, as sorted pairs. loss: a name in benchmarks.paper.trained.LOSSES. watch: test
    after every epoch, not only the last. track: do so at all depths, and keep the gradient norms of
    every epoch. first: how the weights begin, a name in FIRST_WEIGHTS there.
    start: the training whose network this one goes on from, cut where this one has fewer layers.
    teacher: the training whose network tells this one what it makes of the same inputs. altered:
    images are mirrored and shifted by chance while it trains. half: forward passes are autocast to
    bfloat16.
    """

    data: Data
    model: str
    changes: tuple[tuple[str, Any], ...]
    recipe: Recipe
    loss: str = "final"
    alpha: AlphaSchedule | BottomUpAlpha | None = None
    depth: DepthSchedule | None = None
    freeze: FreezeSchedule | None = None
    watch: bool = False
    track: bool = False
    first: str = "default"
    start: Training | None = None
    teacher: Training | None = None
    altered: bool = False
    half: bool = False


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
    """note: where it deviates from the paper, in words. measure: (context, plan, network).
    summary: what the report says of the metrics by network and seed, beside the rows. draw: makes
    a picture of them, into the file given. presets: those that it comes in."""

    name: str
    title: str
    plan: Callable[[str], Plan]
    measure: Callable[[Context, Plan, str], Metrics]
    rows: tuple[Row, ...]
    note: str = ""
    summary: Callable[[Runs], str] | None = None
    draw: Callable[[Runs, Path], None] | None = None
    presets: tuple[str, ...] = ("smoke", "small", "paper")


def over_seeds(seeds: dict[str, Metrics], key: str) -> Tensor:
    """[seeds, ...] fp64: one of a network's metrics."""
    return torch.tensor([metrics[key] for metrics in seeds.values()], dtype=torch.float64)


def fewer_layers(accuracy: tuple[float, float], layers: tuple[float, float]) -> tuple[Row, ...]:
    """The claim that an ACN has its residual twin's accuracy with fewer layers. accuracy, layers:
    the paper's, of ACN and twin, in % of all."""
    return (
        Row("accuracy, points", "accuracy", "ACN", "residual", 0, accuracy, 100),
        Row("layers used, %", "depth_used", "ACN", "residual", -1, layers, 100),
        Row("accuracy lost at half depth, points", "half_drop", "ACN", "residual", -1, None, 100),
    )
