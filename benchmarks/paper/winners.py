"""Which way of training won: the soonest at the twin's accuracy, and the best at half the depth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.paper.spec import Runs
from benchmarks.report.tables import table


class Standing(NamedTuple):
    """reached: in how many of ``seeds`` seeds the way reached the accuracy with which its twin
    ended. seconds: of training until it first did, as a multiple of the twin's whole training, mean
    over those seeds (infinite: never). whole, flops: of the whole training, as multiples too. half:
    accuracy with half the layers, mean over the seeds. noisy: that of all layers under noise.
    seconds_spread, whole_spread: deviations."""

    way: str
    reached: int
    seeds: int
    seconds: float
    whole: float
    flops: float
    half: float
    noisy: float
    seconds_spread: float = 0.0
    whole_spread: float = 0.0

    def beats(self, other: Standing) -> bool:
        """No worse in either and better in one; to have reached it in more seeds comes first."""
        mine = (self.reached, -self.seconds, self.half)
        theirs = (other.reached, -other.seconds, other.half)
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


def standings(runs: Runs, twin: str) -> list[Standing]:
    """Of all ways but the twin, the soonest first; those that failed in more seeds come later."""
    found = [_standing(runs, way, twin) for way in runs if way != twin]
    there = [one for one in found if one is not None]
    return sorted(there, key=lambda s: (-s.reached, s.seconds, -s.half))


def _standing(runs: Runs, way: str, twin: str) -> Standing | None:
    """None where the two have no seed in common."""
    ours, others = runs[way], runs.get(twin, {})
    common = [seed for seed in ours if seed in others]
    if not common:
        return None

    def multiples(key: str, of: str) -> list[float]:
        there = [seed for seed in common if ours[seed][key] is not None]
        return [ours[seed][key] / others[seed][of] for seed in there]

    until = multiples("seconds_to_reach", "seconds")
    whole = multiples("seconds", "seconds")
    return Standing(
        way, len(until), len(common),
        statistics.mean(until) if until else math.inf,
        statistics.mean(whole),
        statistics.mean(multiples("flops", "flops")),
        statistics.mean(ours[seed]["half_accuracy"] for seed in common),
        statistics.mean(ours[seed]["noisy_accuracy"] for seed in common),
        _deviation(until), _deviation(whole),
    )  # fmt: skip


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def unbeaten(found: Iterable[Standing]) -> list[Standing]:
    """Those that none of the others beats in both."""
    found = list(found)
    return [one for one in found if not any(other.beats(one) for other in found)]


def ranking(runs: Runs, twin: str) -> str:
    """The standings as a table, the twin itself last, and the winners in words."""
    found = standings(runs, twin)
    if not found:
        return ""
    rows = [
        [
            str(place), s.way, f"{s.reached} of {s.seeds}",
            f"{s.seconds:.2f} ± {s.seconds_spread:.2f}" if s.reached else "-",
            f"{s.whole:.2f} ± {s.whole_spread:.2f}", f"{s.flops:.2f}", f"{100 * s.half:.1f}",
            f"{100 * s.noisy:.1f}",
        ]
        for place, s in enumerate([*found, _standing(runs, twin, twin)], 1)
    ]  # fmt: skip
    rows[-1][0] = ""
    heads = ["", "way", f"seeds at the accuracy of {twin}", "time until then",
             "whole time", "FLOPs", "accuracy at half depth, %", "under noise, %"]  # fmt: skip
    best = max(found, key=lambda s: s.half)
    first = found[0].way if found[0].reached else "none"
    names = ", ".join(s.way for s in unbeaten(found))
    return (
        f"{table(heads, rows)}\n\nTimes and FLOPs are those of {twin} times so much; times are "
        "wall clock, of networks that share the cores, and so far less certain than FLOPs. "
        f"Every way, {twin} too, may have been at the accuracy with which {twin} ended before its "
        "own end; what counts is the network that it ends with, grown and with its last alpha. "
        "Under noise: of the whole network, the mean over the levels of Table 2. "
        f"Soonest at the accuracy of {twin}: **{first}**. "
        f"Best at half depth: **{best.way}**. Not beaten in both by another: {names}."
    )
