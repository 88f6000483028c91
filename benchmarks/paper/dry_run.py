"""What a preset would do, without doing it."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.paper import measures
from benchmarks.paper.experiments import EXPERIMENTS, NOT_RUN
from benchmarks.paper.spec import Data, Training
from benchmarks.report.tables import table

_SAMPLES = {
    "digits": 1200, "cifar10": 50_000, "cifar100": 50_000, "fashion": 60_000, "sst2": 6920,
}  # fmt: skip
_CLASSES = {"cifar100": 100, "sst2": 2}


def samples(data: Data) -> int:
    """How many training samples ``data`` comes to, if its classes are of equal size."""
    whole, classes = _SAMPLES[data.name], _CLASSES.get(data.name, 10)
    chosen = len(data.classes) if data.classes else classes
    count = min(whole // classes, data.per_class or whole) * chosen
    return min(count, data.train or count)


def training_flops(training: Training) -> float:
    """Of the whole training of one network."""
    return measures.training_flops(training, samples(training.data))


def describe(names: Iterable[str], preset: str, seeds: int) -> str:
    """A table of all networks; one that several experiments share is counted once."""
    rows, counted, total, all_steps = [], set(), 0.0, 0
    for name in names:
        plan = EXPERIMENTS[name].plan(preset)
        for network, training in plan.trainings.items():
            flops = training_flops(training)
            # Tasks one after the other are trained anew by every method.
            own = network if "tasks" in plan.options else None
            shared = (repr(training), own) in counted
            counted.add((repr(training), own))
            steps = training.recipe.epochs * training.recipe.steps_per_epoch(samples(training.data))
            total += 0 if shared else flops * seeds
            all_steps += 0 if shared else steps * seeds
            rows.append([
                name, network, training.data.name, str(samples(training.data)),
                str(training.recipe.epochs), str(steps), training.loss,
                "shared" if shared else f"{flops / 1e12:.4g}",
            ])  # fmt: skip
    heads = ["experiment", "network", "data", "samples", "epochs", "steps", "loss", "TFLOPs a seed"]
    left_out = "\n".join(f"not run: {what}: {why}" for what, why in NOT_RUN.items())
    return (
        f"{table(heads, rows)}\n\n{seeds} seeds: {total / 1e12:.4g} TFLOPs in all, in "
        f"{all_steps} steps, if every network shared is trained once.\n{left_out}"
    )
