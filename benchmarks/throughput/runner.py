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
from benchmarks.throughput.case import Case, Setting, Way
from benchmarks.throughput.environment import environment

_QUICK_ROUNDS = 3


def run(cases: Iterable[Case], out: Path, setting: Setting, quick: bool = False) -> list[Path]:
    """Measures every case; ``quick`` takes few rounds. Returns the files written."""
    machine, files = environment(), []
    for case in cases:
        result = measure(case, setting, _QUICK_ROUNDS if quick else case.rounds)
        files.append(out / f"{case.name}.json")
        with written_whole(files[-1]) as path:
            path.write_text(json.dumps({**result, "environment": machine}, indent=1) + "\n")
        print(summary(result), flush=True)
    return files


def measure(case: Case, setting: Setting, rounds: int) -> dict[str, object]:
    """All samples of one case; beside each way its first call, error and peak memory."""
    torch.manual_seed(0)
    built = case.build(setting)
    expected, first = None, {}
    for name, way in built.ways.items():
        value, first[name] = _first_call(way, setting.device)
        expected = value if expected is None else expected
        first[name]["relative_error"] = ((value - expected).norm() / expected.norm()).item()
    return {
        "case": case.name,
        "what": built.what,
        "device": setting.device,
        "dtype": str(setting.dtype),
        "tiny": setting.tiny,
        "peer": next(iter(built.ways)),
        "missing": built.missing,
        "bytes_moved": built.bytes_moved,
        "queued": case.queued,
        "first_call": first,
        "seconds": interleaved_seconds(
            built.ways, rounds, setting.device, warmup=2, queued=case.queued
        ),
    }


def _first_call(way: Way, device: str) -> tuple[torch.Tensor, dict[str, float]]:
    """The way's value in float64, the seconds of its first call (compilation included) and, on a
    GPU, the peak memory of a second one in bytes."""
    started = time.perf_counter()
    value = way().detach().double()  # .double().cpu() waits for the device
    value = value.cpu()
    facts = {"seconds": time.perf_counter() - started}
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        torch.cuda.synchronize(device)
        facts["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
    return value, facts


def summary(result: dict) -> str:
    """A few lines: medians, spread, the ratio to the peer, and the bandwidth where it is known."""
    peer = result["peer"]
    base = statistics.median(result["seconds"][peer])
    lines = [f"{result['case']}: {result['what']}, {result['dtype']}, {result['device']}"]
    for name, samples in result["seconds"].items():
        median = statistics.median(samples)
        low, _, high = statistics.quantiles(samples, n=4)
        line = (
            f"  {name:<34} {1e3 * median:9.3f} ms  (quartiles {1e3 * low:.3f} to "
            f"{1e3 * high:.3f})  {median / base:6.3f} of {peer}"
        )
        line += f", error {result['first_call'][name]['relative_error']:.1e}"
        if result["bytes_moved"]:
            line += f", {result['bytes_moved'] / median / 1e9:.0f} GB/s"
        lines.append(line)
    lines += [f"  {name:<34} missing: {why}" for name, why in result["missing"].items()]
    return "\n".join(lines)
