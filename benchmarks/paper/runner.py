"""Runs experiments network by network and seed by seed, several at once, and keeps each result."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper import records
from benchmarks.paper.experiments import EXPERIMENTS
from benchmarks.paper.trained import Context, OutOfTime
from benchmarks.throughput.environment import environment, sources


@dataclass(frozen=True)
class Settings:
    """What is run and where. jobs: processes at once, each with its share of the cores, all of
    them on the one GPU that ``device`` may name."""

    preset: str
    seeds: int
    out: Path
    work: Path
    data_dir: str | None = None
    device: str = "cpu"
    jobs: int = 1
    deadline: float | None = None


@dataclass(frozen=True)
class Unit:
    """One network of one experiment from one seed."""

    experiment: str
    network: str
    seed: int

    def file(self, settings: Settings) -> Path:
        name = hashlib.sha256(f"{self.network}".encode()).hexdigest()[:8]
        return settings.work / "runs" / settings.preset / self.experiment / (
            f"{name}-{self.seed}.json"
        )  # fmt: skip


class Absent(str):
    """Why data is not there."""


@dataclass
class Outcome:
    """left: units that no time was left for. absent: those whose data the user does not have.
    failed: those that raised. Both with the reason."""

    left: list[Unit] = field(default_factory=list)
    absent: dict[Unit, str] = field(default_factory=dict)
    failed: dict[Unit, str] = field(default_factory=dict)


def units(names: Iterable[str], preset: str, seeds: int) -> list[Unit]:
    return [
        Unit(name, network, seed)
        for name in names
        for network in EXPERIMENTS[name].plan(preset).trainings
        for seed in range(seeds)
    ]


def run(names: Sequence[str], settings: Settings) -> Outcome:
    """Runs what is not yet there, then writes one result file for each finished experiment."""
    outcome, todo = Outcome(), []
    for unit in units(names, settings.preset, settings.seeds):
        if records.is_current(unit.file(settings), _identity(unit, settings)):
            print(f"{_told(unit)}: kept as it is", flush=True)
        else:
            todo.append(unit)
    for unit, end in _ends(todo, settings):
        if end is OutOfTime:
            outcome.left.append(unit)
        elif isinstance(end, Absent):
            outcome.absent[unit] = end
            print(f"{_told(unit)}: not run: {end}", file=sys.stderr, flush=True)
        elif end is not None:
            outcome.failed[unit] = end
            print(f"{_told(unit)}: failed: {end}", file=sys.stderr, flush=True)
        else:
            print(f"{_told(unit)}: done", flush=True)
    for name in names:
        _assemble(name, settings)
    return outcome


def _ends(todo: list[Unit], settings: Settings):
    """(unit, how it ended) as they end: None, OutOfTime, Absent, or the error's text."""
    work = [(unit, settings) for unit in todo]
    if settings.jobs == 1 or len(work) < 2:
        _set_up(settings.device, 1)
        yield from map(_run_unit, work)
        return
    # Spawned, because CUDA does not survive a fork.
    with multiprocessing.get_context("spawn").Pool(
        min(settings.jobs, len(work)), _set_up, [settings.device, settings.jobs]
    ) as pool:
        yield from pool.imap_unordered(_run_unit, work)


def _threads(jobs: int) -> int:
    """Of each of so many processes side by side."""
    return max(1, torch.get_num_threads() // jobs)


def _set_up(device: str, jobs: int) -> None:
    torch.set_num_threads(_threads(jobs))
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32


def _run_unit(work: tuple[Unit, Settings]):
    unit, settings = work
    experiment = EXPERIMENTS[unit.experiment]
    context = Context(
        settings.work, unit.seed, settings.data_dir, settings.device, settings.deadline
    )
    if settings.deadline is not None and time.time() > settings.deadline:
        return unit, OutOfTime
    started = time.perf_counter()
    try:
        metrics = experiment.measure(context, experiment.plan(settings.preset), unit.network)
    except OutOfTime:
        return unit, OutOfTime
    except FileNotFoundError as error:
        return unit, Absent(error)
    except Exception as error:
        traceback.print_exc()
        return unit, f"{type(error).__name__}: {error}"
    records.write(unit.file(settings), {
        **_identity(unit, settings), "seconds": time.perf_counter() - started, "metrics": metrics,
    })  # fmt: skip
    return unit, None


def _identity(unit: Unit, settings: Settings) -> dict[str, Any]:
    """What a result must agree in to be kept. A JSON file knows no tuples: the plan as text."""
    plan = EXPERIMENTS[unit.experiment].plan(settings.preset)
    return {
        "experiment": unit.experiment,
        "preset": settings.preset,
        "network": unit.network,
        "seed": unit.seed,
        "training": repr(plan.trainings[unit.network]),
        "options": repr(plan.options),
        "device": settings.device,
        "sources": sources(),
    }


def _assemble(name: str, settings: Settings) -> None:
    """One file of all networks and seeds in ``out``, where they are all there."""
    mine = units([name], settings.preset, settings.seeds)
    if not all(records.is_current(unit.file(settings), _identity(unit, settings)) for unit in mine):
        return
    parts = [records.read(unit.file(settings)) for unit in mine]
    records.write(settings.out / settings.preset / f"{name}.json", {
        "experiment": name,
        "preset": settings.preset,
        "device": settings.device,
        "seeds": settings.seeds,
        "jobs": settings.jobs,
        "trainings": {part["network"]: part["training"] for part in parts},
        "seconds": sum(part["seconds"] for part in parts),
        "runs": records.joined(parts),
        "environment": {**environment(), "threads": _threads(settings.jobs)},
    })  # fmt: skip


def _told(unit: Unit) -> str:
    return f"{unit.experiment}: {unit.network}, seed {unit.seed}"
