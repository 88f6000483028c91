"""Ours beside the paper's: the difference between two networks, and what to call it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.paper.spec import ALIKE, Row

Runs = dict[str, dict[str, Any]]  # network -> seed -> metrics


@dataclass(frozen=True)
class Verdict:
    """ours, other: means over the seeds, in the row's unit. difference: ours - other, mean and
    deviation over the seeds (0 for one). paper: its difference. word: "same" (the paper's sign),
    "better" (its sign, and at least its size), "worse" (not its sign, or never reached) or "not
    run"."""

    row: Row
    ours: float | None = None
    other: float | None = None
    difference: float | None = None
    spread: float = 0.0
    word: str = "not run"

    @property
    def paper_difference(self) -> float | None:
        return None if self.row.paper is None else self.row.paper[0] - self.row.paper[1]


def judge(row: Row, runs: Runs) -> Verdict:
    """Compares seed by seed: both networks of a seed saw the same batches."""
    of, against = runs.get(row.of, {}), runs.get(row.against, {})
    seeds = [s for s in of if s in against and _is_there(row, of[s]) and _is_there(row, against[s])]
    if not seeds:
        never = any(m.get(row.metric, 0) is None for m in of.values())
        return Verdict(row, word="worse" if never else "not run")
    pairs = [(row.scale * of[s][row.metric], row.scale * against[s][row.metric]) for s in seeds]
    differences = [a - b for a, b in pairs]
    mean = statistics.mean(differences)
    return Verdict(
        row,
        statistics.mean(a for a, _ in pairs),
        statistics.mean(b for _, b in pairs),
        mean,
        statistics.stdev(differences) if len(seeds) > 1 else 0.0,
        _word(row, mean),
    )


def _is_there(row: Row, metrics: dict[str, Any]) -> bool:
    value = metrics.get(row.metric)
    return value is not None and value == value  # NaN is no measurement


def _word(row: Row, difference: float) -> str:
    if row.sign == 0:
        return "worse" if difference < -ALIKE else "better" if difference > ALIKE else "same"
    if difference * row.sign <= 0:
        return "worse"
    if row.paper is None:
        return "same"
    return "better" if abs(difference) >= abs(row.paper[0] - row.paper[1]) else "same"
