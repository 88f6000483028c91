"""The demonstration's results as text and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from acn_kernels.demo.experiment import BATCHES, NETWORKS, Outcome
from acn_kernels.text_table import text_table

Runs = list[dict[str, Outcome]]  # one per seed


def as_text(runs: Runs, max_drop: float) -> str:
    """The tables, each cell the mean over the seeds and, with several, ± their deviation."""
    depth = len(runs[0]["acn"].accuracy) - 1
    sections = [
        text_table(
            "test accuracy by depth, %",
            [str(k) for k in range(depth + 1)],
            {name: _row(runs, name, lambda o, k: 100 * o.accuracy[k].item(), depth + 1)
             for name in NETWORKS},
        ),
        text_table(
            f"chosen on the calibration set for a drop of at most {100 * max_drop:g} points",
            ["cutoff", "of", "accuracy there", "exit threshold", "exit accuracy", "mean depth",
             "training s"],
            {name: [
                _cell(runs, name, lambda o: o.cutoff),
                str(depth),
                _cell(runs, name, lambda o: 100 * o.accuracy[o.cutoff].item()),
                _cell(runs, name, lambda o: o.threshold, 3),
                _cell(runs, name, lambda o: 100 * o.exit_accuracy),
                _cell(runs, name, lambda o: o.exit_depth),
                _cell(runs, name, lambda o: o.train_seconds),
            ] for name in NETWORKS},
        ),
    ]  # fmt: skip
    for name in NETWORKS:
        ways = list(runs[0][name].milliseconds[BATCHES[0]])
        sections.append(
            text_table(
                f"{name}: milliseconds per batch, medians",
                [f"batch {batch}" for batch in BATCHES],
                {way: [
                    _cell(runs, name, lambda o, b=batch, w=way: o.milliseconds[b][w], 2)
                    for batch in BATCHES
                ] for way in ways},
            )
        )  # fmt: skip
    return "\n\n".join(sections)


def as_data(runs: Runs) -> list[dict]:
    """All measurements, seed by seed, ready for JSON."""
    return [
        {
            name: {
                "accuracy": outcome.accuracy.tolist(),
                "cutoff": outcome.cutoff,
                "exit_threshold": outcome.threshold,
                "exit_accuracy": outcome.exit_accuracy,
                "exit_mean_depth": outcome.exit_depth,
                "train_seconds": outcome.train_seconds,
                "milliseconds": outcome.milliseconds,
            }
            for name, outcome in run.items()
        }
        for run in runs
    ]


def _row(runs: Runs, name: str, value: Callable[[Outcome, int], float], count: int) -> list[str]:
    return [_cell(runs, name, lambda outcome, k=k: value(outcome, k)) for k in range(count)]


def _cell(runs: Runs, name: str, value: Callable[[Outcome], float], digits: int = 1) -> str:
    values = [value(run[name]) for run in runs]
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
