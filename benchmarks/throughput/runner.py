"""Measures cases and writes one raw JSON file for each, as soon as it is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from acn_kernels.files import written_whole
from acn_kernels.timing import interleaved_seconds
from benchmarks.sealed import sealed
from benchmarks.throughput.case import Case, Entry, Missing, Setting, Ways
from benchmarks.throughput.ceilings import ceilings
from benchmarks.throughput.environment import clocks, environment
from benchmarks.throughput.measures import (
    counted_flops,
    first_call,
    kept_bytes,
    peak_bytes,
    relative_error,
    release,
)
from benchmarks.throughput.peers import without_compilers

QUICK_ROUNDS = 3
BRIEF_ROUNDS = 9
_LEAST_ROUNDS = 5
_LONGEST_ERROR = 2000
# |value - truth| / |truth| that rounding, and samples on the edge of an exit, can come to.
MOST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.1}
SHORTEST_SAMPLE = 0.03  # seconds, on a CPU
_OUT_OF_TIME = "no time was left in this run (--budget)"
_NOT_IN_BRIEF = "compiled ways that no target names are left out of a brief run"
_SHARE_TO_START = 0.6  # of a budget: past it no further case is begun


@dataclass(frozen=True)
class Plan:
    """How much is measured. budget: seconds for the whole run (None: no bound); cases that it
    leaves out are named. resume: keep the files in ``out`` that this code finished on this
    device. ours_only: no peers but the first of each case. brief: few rounds, and nothing is
    compiled but what a target is set for or against."""

    quick: bool = False
    budget: float | None = None
    resume: bool = False
    ours_only: bool = False
    brief: bool = False

    def rounds(self, usual: int) -> int:
        most = QUICK_ROUNDS if self.quick else BRIEF_ROUNDS if self.brief else usual
        return min(usual, most)


class Clock:
    """The budget of a run."""

    def __init__(self, budget: float | None) -> None:
        self.budget, self.started = budget, time.monotonic()

    def spent(self, share: float = 1.0) -> bool:
        return self.budget is not None and self.elapsed > share * self.budget

    def rounds_within(self, rounds: int, seconds_each: float) -> int:
        """As many of the rounds as fit, but enough for quartiles."""
        if self.budget is None or seconds_each <= 0:
            return rounds
        fitting = int((self.budget - self.elapsed) / seconds_each)
        return max(min(rounds, fitting), min(rounds, _LEAST_ROUNDS))

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started


def run(cases: Iterable[Case], out: Path, setting: Setting, plan: Plan = Plan()) -> list[str]:
    """Measures the cases in their order; returns the names of those that no time was left for."""
    clock, machine, limits, left = Clock(plan.budget), environment(), None, []
    for case in cases:
        file = out / f"{case.name}.json"
        if plan.resume and _finished(file, machine, setting, plan):
            print(f"{case.name}: kept as it is", flush=True)
            continue
        if clock.spent(_SHARE_TO_START):
            left.append(case.name)
            continue
        limits = limits or ceilings(setting)
        result = {
            **measure(case, setting, plan, clock),
            "ceilings": limits,
            "clocks": clocks(),
            "environment": machine,
        }
        with written_whole(file) as path:
            path.write_text(json.dumps(sealed(result), indent=1) + "\n")
        print(_line(result), flush=True)
    return left


def measure(
    case: Case, setting: Setting, plan: Plan = Plan(), clock: Clock | None = None
) -> dict[str, object]:  # fmt: skip
    """All samples of one case; beside each way its first call, error and memory.

    A way that raises is recorded with its error, and the others go on.
    """
    clock = clock or Clock(None)
    release(setting)
    torch.manual_seed(0)
    outcome, what = Outcome(), ""
    try:
        ways = case.build(setting)
    except Exception as error:
        ways = Ways("")
        outcome.failed["building the case"] = _told(error)
    entries = _chosen(ways, plan)
    outcome.values = dict.fromkeys(entry.like for entry in entries.values())
    aimed_at = _aimed_at(ways)
    for name, entry in entries.items():
        with without_compilers(_NOT_IN_BRIEF if plan.brief and name not in aimed_at else None):
            outcome.first(name, entry, setting, clock)
    flops = outcome.flops(ways, setting)
    what = ways.what
    seconds = outcome.time(entries, case, setting, plan, clock)
    return {
        "case": case.name,
        "what": what,
        "device": setting.device,
        "dtype": str(setting.dtype),
        "tiny": setting.tiny,
        "quick": plan.quick,
        "ours_only": plan.ours_only,
        "brief": plan.brief,
        "single_kernel": case.single_kernel,
        "peer": next(iter(entries), None),
        "ways": list(entries),
        "ours": [name for name, entry in entries.items() if entry.ours],
        "same_work": [name for name, entry in entries.items() if entry.same_work],
        "missing": outcome.missing,
        "failed": outcome.failed,
        "bytes_moved": ways.bytes_moved,
        "flops": flops,
        "facts": ways.facts,
        "quality": ways.quality,
        "comparisons": [asdict(comparison) for comparison in ways.comparisons],
        "first_call": outcome.facts,
        "seconds": seconds,
    }


@dataclass
class Outcome:
    """What became of the ways of one case."""

    facts: dict[str, dict[str, object]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    # Of the ways that others are held against; None until they have run.
    values: dict[str | None, torch.Tensor | None] = field(default_factory=dict)

    def first(self, name: str, entry: Entry, setting: Setting, clock: Clock) -> None:
        """The first call, with everything that is measured once."""
        if clock.spent():
            self.missing[name] = _OUT_OF_TIME
            return
        try:
            value, seconds = first_call(entry.call, setting)
            self.facts[name] = {
                "seconds": seconds,
                "like": entry.like,
                "relative_error": self._error(name, value, entry.like, MOST_ERROR[setting.dtype]),
                "peak_bytes": None if entry.graphed else peak_bytes(entry.call, setting),
                "kept_bytes": None if entry.graphed else kept_bytes(entry.call, setting),
            }
        except Missing as reason:
            self.missing[name] = str(reason)
        except Exception as error:
            self._fail(name, error)

    def _error(self, name: str, value: torch.Tensor, like: str | None, most: float) -> float | None:
        if name in self.values:
            self.values[name] = value
        truth = self.values[like]
        if truth is None:
            return None
        error = relative_error(value, truth)
        if error > most:
            raise ValueError(f"its value differs by {error:.2g} of that of {like}, its like")
        return error

    def _fail(self, name: str, error: Exception) -> None:
        self.failed[name] = _told(error)
        self.facts.pop(name, None)

    def flops(self, ways: Ways, setting: Setting) -> int | None:
        """Of one call of the way they are counted on; None where the case counts bytes."""
        self.values.clear()
        counted = ways.counted or next((entry.call for entry in ways.entries.values()), None)
        if ways.bytes_moved is not None or counted is None:
            return None
        try:
            return counted_flops(counted) or None
        except Exception as error:
            self.failed["counting FLOPs"] = _told(error)
            return None

    def time(
        self, entries: dict[str, Entry], case: Case, setting: Setting, plan: Plan, clock: Clock
    ) -> dict[str, list[float]]:
        """Samples of every way that ran, all from the same rounds."""
        calls = {name: self._guarded(name, entries[name]) for name in self.facts}
        if not calls:
            return {}
        before = cache_flush(setting) if case.single_kernel else None
        rounds = plan.rounds(case.rounds)
        if clock.budget is not None:
            trial = interleaved_seconds(calls, 1, setting.device)
            rounds = clock.rounds_within(rounds, sum(samples[0] for samples in trial.values()))
        samples = interleaved_seconds(
            calls,
            rounds,
            setting.device,
            warmup=2,
            queued=case.single_kernel,
            before=before,
            least=0.0 if setting.on_gpu or setting.tiny else SHORTEST_SAMPLE,
        )
        return {name: samples[name] for name in samples if name not in self.failed}

    def _guarded(self, name: str, entry: Entry):
        """The way; once it has raised, nothing."""

        def call() -> None:
            if name in self.failed:
                return
            try:
                entry.call()
            except Exception as error:
                self._fail(name, error)

        return call


def cache_flush(setting: Setting):
    """Writes a buffer larger than the GPU's caches; None on a CPU."""
    if not setting.on_gpu:
        return None
    cache = torch.cuda.get_device_properties(setting.device).L2_cache_size
    buffer = torch.empty(4 * cache, dtype=torch.uint8, device=setting.device)
    return buffer.zero_


def _chosen(ways: Ways, plan: Plan) -> dict[str, Entry]:
    first = next(iter(ways.entries), None)
    return {
        name: entry
        for name, entry in ways.entries.items()
        if not plan.ours_only or entry.ours or name == first
    }


def _aimed_at(ways: Ways) -> set[str]:
    """The ways that a target is set for or against."""
    aims = [c for c in ways.comparisons if c.at_most is not None]
    return {name for aim in aims for name in (aim.way, aim.against)}


def _finished(file: Path, machine: dict, setting: Setting, plan: Plan) -> bool:
    """Whether an earlier run measured all of the case, without a failure, on the same code and
    device; a quick or brief one, or one without peers, did so for another of its kind alone."""
    same = (
        "sources", "extension", "torch", "triton", "peers", "gpus", "driver", "processor",
        "threads",
    )  # fmt: skip
    lacking = {"quick": plan.quick, "brief": plan.brief, "ours_only": plan.ours_only}
    try:
        result = json.loads(file.read_text())
        return (
            all(result["environment"].get(key) == machine[key] for key in same)
            and (result["device"], result["tiny"]) == (setting.device, setting.tiny)
            and _OUT_OF_TIME not in result["missing"].values()
            and not result["failed"]
            and all(wanted or not result.get(kind) for kind, wanted in lacking.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or another's file
        return False


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]


def _line(result: dict) -> str:
    counts = f"{len(result['seconds'])} of {len(result['ways'])} ways"
    rounds = len(next(iter(result["seconds"].values()), []))
    lines = [f"{result['case']}: {counts}, {rounds} rounds: {result['what']}"]
    lines += [f"  missing: {name}: {why}" for name, why in result["missing"].items()]
    lines += [f"  FAILED: {name}: {why.splitlines()[0]}" for name, why in result["failed"].items()]
    return "\n".join(lines)
