"""The files of a run, and the figures that follow from their samples."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.sealed import was_changed
from benchmarks.throughput.case import COPY_CEILING, FASTEST_PEER, Comparison

_NEEDED = (
    "what", "device", "dtype", "peer", "ways", "missing", "bytes_moved", "first_call",
    "environment",
)  # fmt: skip


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        if len(samples) == 1:
            return cls(*(3 * [samples[0]]))
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Result:
    """One case as it was measured; ``raw`` is the file."""

    raw: dict[str, Any]

    @property
    def name(self) -> str:
        return self.raw["case"]

    @property
    def what(self) -> str:
        return self.raw["what"]

    @property
    def peer(self) -> str | None:
        """The way that ratios are taken against; None where it was not measured."""
        return self.raw["peer"] if self.raw["peer"] in self.raw["seconds"] else None

    @property
    def measured(self) -> list[str]:
        """The names of the ways with samples, in their order."""
        return list(self.raw["seconds"])

    @property
    def rounds(self) -> int:
        return max(map(len, self.raw["seconds"].values()), default=0)

    @property
    def absent(self) -> dict[str, str]:
        """Why a way has no samples, by its name."""
        failed = {name: f"failed: {why}" for name, why in self.raw.get("failed", {}).items()}
        return {**self.raw["missing"], **failed}

    @property
    def quality(self) -> dict[str, float]:
        """The accuracy of every way, where they differ in it; else empty."""
        return self.raw.get("quality", {})

    def is_ours(self, way: str) -> bool:
        return way in self.raw.get("ours", ())

    def seconds(self, way: str) -> Spread:
        return Spread.of(self.raw["seconds"][way])

    def fact(self, way: str, key: str) -> Any:
        """What was measured of the way beside its time; None where it was not."""
        return self.raw["first_call"][way].get(key)

    def ratio(self, way: str, against: str, factor: float = 1.0) -> Spread | None:
        """The time of ``way`` divided by ``factor`` times that of ``against``, round by round;
        None where either has no samples."""
        samples = self._samples(way), self._samples(against)
        if None in samples:
            return None
        return Spread.of([a / (factor * b) for a, b in zip(*samples, strict=True)])

    def answer(self, question: Comparison) -> Spread | None:
        """None where one of the two was not measured."""
        if question.of == "time":
            return self.ratio(question.way, question.against, question.factor)
        kept = [self._kept(way) for way in (question.way, question.against)]
        if not all(kept):
            return None
        return Spread.of([kept[0] / (question.factor * kept[1])])

    def _kept(self, way: str) -> float | None:
        return self.raw["first_call"].get(way, {}).get("kept_bytes")

    def _samples(self, way: str) -> list[float] | None:
        ceiling = self.raw.get("ceilings", {}).get("copy_bytes_per_s")
        if way == COPY_CEILING and ceiling and self.raw["bytes_moved"]:
            return self.rounds * [self.raw["bytes_moved"] / ceiling]
        return self.raw["seconds"].get(self.named(way))

    def named(self, way: str) -> str:
        """The name of the way that FASTEST_PEER stands for; any other stands for itself."""
        peers = [
            peer
            for peer in self.measured
            if not self.is_ours(peer) and peer in self.raw.get("same_work", self.measured)
        ]
        if way != FASTEST_PEER or not peers:
            return way
        return min(peers, key=lambda peer: self.seconds(peer).median)

    def rate(self, way: str) -> tuple[float, str, float | None] | None:
        """(per second, "B" or "FLOP", share of the ceiling of the same run); None where the way
        does other work than what was counted."""
        if way not in self.raw.get("same_work", self.measured):
            return None
        for count, unit, ceiling in (
            ("bytes_moved", "B", "copy_bytes_per_s"),
            ("flops", "FLOP", "matmul_flops_per_s"),
        ):
            if self.raw.get(count):
                rate = self.raw[count] / self.seconds(way).median
                limit = self.raw.get("ceilings", {}).get(ceiling)
                return rate, unit, rate / limit if limit else None
        return None

    @property
    def comparisons(self) -> list[Comparison]:
        """The questions of the case; of a case without any, every way against the peer."""
        given = [Comparison(**fields) for fields in self.raw.get("comparisons", ())]
        if given or self.peer is None:
            return given
        others = (way for way in self.measured if way != self.peer)
        return [Comparison(f"{way} against {self.peer}", way, self.peer) for way in others]


def load(folder: Path) -> list[Result]:
    """All results in the folder, by name.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is no JSON, no whole result, or was changed since it was written.
    """
    files = sorted(folder.glob("*.json"), key=_numbers_apart)
    results = [result for result in map(_read, files) if result is not None]
    if not results:
        raise FileNotFoundError(f"{folder} holds no result of benchmarks.throughput")
    return results


def _read(file: Path) -> Result | None:
    """None where the file is of another kind."""
    try:
        fields = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not (isinstance(fields, dict) and "case" in fields and "seconds" in fields):
        return None
    lacking = [key for key in _NEEDED if key not in fields]
    if lacking:
        raise ValueError(f"{file} is no whole result: it lacks {', '.join(lacking)}")
    if was_changed(fields):
        raise ValueError(f"{file} was changed after it was written: its checksum does not fit")
    samples = list(fields["seconds"].values())
    if len(set(map(len, samples))) > 1 or not all(0 < s < math.inf for way in samples for s in way):
        raise ValueError(f"{file}: its ways differ in their samples' number, or some are no times")
    return Result(fields)


def _numbers_apart(file: Path) -> list[tuple[str, int]]:
    """By which 16 comes before 256."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", file.name)]


def conditions(results: Iterable[Result]) -> dict[str, str]:
    """What the results were measured on; several values where the files differ."""

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(str(result.raw["environment"].get(key)) for result in found))

    found = list(results)
    gpus = dict.fromkeys(
        gpu["name"] for result in found for gpu in result.raw["environment"]["gpus"]
    )
    keys = ("processor", "threads", "torch", "triton", "driver", "commit")
    on_gpu = any(result.raw["device"] != "cpu" for result in found)
    return {
        **({"gpu": ", ".join(gpus)} if on_gpu else {}),
        **{key: values(key) for key in keys if values(key) not in ("", "None")},
    }
