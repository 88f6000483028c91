"""Ours beside the paper's: the difference between two networks, and what to call it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.paper.spec import ALIKE, Row, Runs

_ROUNDING = 1e-9  # of the larger number: no metric resolves less, floating point adds less


@dataclass(frozen=True)
class Verdict:
    """ours, other: means over the seeds, in the row's unit. difference: ours - other, mean over
    the seeds; spread: its deviation (None for one seed). compared, seeds: in how many seeds both
    networks have the number, of how many. word: one of LEGEND."""

    row: Row
    ours: float | None = None
    other: float | None = None
    difference: float | None = None
    spread: float | None = None
    compared: int = 0
    seeds: int = 0
    word: str = "not run"

    @property
    def paper_difference(self) -> float | None:
        return None if self.row.paper is None else self.row.paper[0] - self.row.paper[1]


LEGEND = {
    "same": "the difference has the sign that is expected, and is larger than its spread",
    "better": "the same, and at least of the paper's size",
    "worse": "it has the other sign, and is larger than its spread; or the first network never got "
    "there",
    "unclear": "it is within its spread, or the first network got there in some of the seeds",
    "none": "there is no difference in any seed",
    "not run": "not measured",
}
EQUAL = (
    "Where the two are expected to be equal, the first is `worse` if it is more than a point of "
    "accuracy below, `better` if more than a point above, else `same`; `unclear` if its spread "
    "reaches from worse to not worse"
)


def judge(row: Row, runs: Runs) -> Verdict:
    """Compares seed by seed: both networks of a seed saw the same batches."""
    of, against = runs.get(row.of, {}), runs.get(row.against, {})
    there = [s for s in of if s in against and _is_there(row, against[s])]
    seeds = [s for s in there if _is_there(row, of[s])]
    if not seeds:
        never = any(m.get(row.metric, 0) is None for m in of.values())
        return Verdict(row, seeds=len(there), word="worse" if never else "not run")
    pairs = [(row.scale * of[s][row.metric], row.scale * against[s][row.metric]) for s in seeds]
    differences = [a - b for a, b in pairs]
    ours, other = (statistics.mean(column) for column in zip(*pairs, strict=True))
    resolved = _ROUNDING * max(abs(ours), abs(other))
    difference = _rounded(statistics.mean(differences), resolved)
    spread = _rounded(statistics.stdev(differences), resolved) if len(seeds) > 1 else None
    word = _word(row, difference, spread or 0.0) if len(seeds) == len(there) else "unclear"
    return Verdict(row, ours, other, difference, spread, len(seeds), len(there), word)


def _is_there(row: Row, metrics: dict[str, Any]) -> bool:
    value = metrics.get(row.metric)
    return value is not None and value == value  # NaN is no measurement


def _rounded(value: float, resolved: float) -> float:
    return 0.0 if abs(value) <= resolved else value


def _word(row: Row, difference: float, spread: float) -> str:
    if row.sign == 0:
        if difference - spread >= -ALIKE:
            return "better" if difference - spread > ALIKE else "same"
        return "worse" if difference + spread < -ALIKE else "unclear"
    if difference == spread == 0:
        return "none"
    if abs(difference) <= spread:
        return "unclear"
    if difference * row.sign < 0:
        return "worse"
    if row.paper is None:
        return "same"
    return "better" if abs(difference) >= abs(row.paper[0] - row.paper[1]) else "same"
