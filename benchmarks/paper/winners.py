"""Which way of training won: the soonest at the twin's accuracy, and the best at half the depth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.paper.spec import Runs
from benchmarks.report.tables import table


class Standing(NamedTuple):
    """reached: in how many of ``seeds`` seeds the way reached its twin's accuracy. seconds: of
    training until then, as a multiple of the twin's whole training, mean over those seeds
    (infinite: never). whole, flops: of the whole training, as multiples too. half: accuracy with
    half the layers, mean over the seeds."""

    way: str
    reached: int
    seeds: int
    seconds: float
    whole: float
    flops: float
    half: float

    def beats(self, other: Standing) -> bool:
        """No worse in either and better in one; to have reached it in more seeds comes first."""
        mine = (self.reached, -self.seconds, self.half)
        theirs = (other.reached, -other.seconds, other.half)
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


def standings(runs: Runs, twin: str) -> list[Standing]:
    """Of all ways but the twin, the soonest first; those that failed in more seeds come later."""
    found = []
    for way, seeds in runs.items():
        common = [seed for seed in seeds if seed in runs.get(twin, {})] if way != twin else []
        if not common:
            continue
        shares = [
            seeds[seed]["seconds_to_reach"] / runs[twin][seed]["seconds"]
            for seed in common
            if seeds[seed]["seconds_to_reach"] is not None
        ]
        whole, flops = (
            statistics.mean(seeds[seed][key] / runs[twin][seed][key] for seed in common)
            for key in ("seconds", "flops")
        )
        half = statistics.mean(seeds[seed]["half_accuracy"] for seed in common)
        mean = statistics.mean(shares) if shares else math.inf
        found.append(Standing(way, len(shares), len(common), mean, whole, flops, half))
    return sorted(found, key=lambda s: (-s.reached, s.seconds, -s.half))


def unbeaten(found: Iterable[Standing]) -> list[Standing]:
    """Those that none of the others beats in both."""
    found = list(found)
    return [one for one in found if not any(other.beats(one) for other in found)]


def ranking(runs: Runs, twin: str) -> str:
    """The standings as a table, and the winners in words."""
    found = standings(runs, twin)
    if not found:
        return ""
    rows = [
        [
            str(place), s.way, f"{s.reached} of {s.seeds}",
            f"{s.seconds:.2f}" if s.reached else "-", f"{s.whole:.2f}", f"{s.flops:.2f}",
            f"{100 * s.half:.1f}",
        ]
        for place, s in enumerate(found, 1)
    ]  # fmt: skip
    heads = ["", "way", f"seeds at the accuracy of {twin}", "time until then",
             "whole time", "FLOPs", "accuracy at half depth, %"]  # fmt: skip
    best = max(found, key=lambda s: s.half)
    first = found[0].way if found[0].reached else "none"
    names = ", ".join(s.way for s in unbeaten(found))
    return (
        f"{table(heads, rows)}\n\nTimes and FLOPs are those of {twin} times so much. "
        f"Soonest at the accuracy of {twin}: **{first}**. "
        f"Best at half depth: **{best.way}**. Not beaten in both by another: {names}."
    )
