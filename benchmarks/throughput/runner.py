"""Measures cases and writes one raw JSON file for each."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from acn_kernels.files import written_whole
from acn_kernels.timing import interleaved_seconds
from benchmarks.throughput.case import Case
from benchmarks.throughput.environment import environment


def run(cases: Iterable[Case], out: Path, device: str, quick: bool = False) -> list[Path]:
    """Measures every case on ``device``; ``quick`` takes 3 rounds. Returns the files written."""
    machine, files = environment(), []
    for case in cases:
        result = measure(case, device, 3 if quick else case.rounds)
        files.append(out / f"{case.name}.json")
        with written_whole(files[-1]) as path:
            path.write_text(json.dumps({**result, "environment": machine}, indent=1) + "\n")
        print(summary(result), flush=True)
    return files


def measure(case: Case, device: str, rounds: int) -> dict[str, object]:
    """All samples of one case, with each way's set-up time and error against the first way."""
    torch.manual_seed(0)
    started = time.perf_counter()
    ways = case.build(device)
    build_seconds = time.perf_counter() - started
    expected, errors, first_call = None, {}, {}
    for name, way in ways.items():
        started = time.perf_counter()
        value = way().detach().double()  # .double() waits for the device
        first_call[name] = time.perf_counter() - started
        expected = value if expected is None else expected
        errors[name] = ((value - expected).norm() / expected.norm()).item()
    samples = interleaved_seconds(ways, rounds, device)
    return {
        "case": case.name,
        "what": case.what,
        "device": device,
        "peer": next(iter(ways)),
        "build_seconds": build_seconds,
        "first_call_seconds": first_call,
        "relative_error": errors,
        "seconds": samples,
    }


def summary(result: dict) -> str:
    """A few lines: medians, spread, and the ratio to the peer."""
    peer = result["peer"]
    base = statistics.median(result["seconds"][peer])
    lines = [f"{result['case']}: {result['what']}, {result['device']}"]
    for name, samples in result["seconds"].items():
        median = statistics.median(samples)
        low, _, high = statistics.quantiles(samples, n=4)
        lines.append(
            f"  {name:<34} {1e3 * median:9.2f} ms  (quartiles {1e3 * low:.2f} to "
            f"{1e3 * high:.2f})  {median / base:6.3f} of {peer}, "
            f"error {result['relative_error'][name]:.1e}"
        )
    return "\n".join(lines)
