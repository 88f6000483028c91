"""Wall-clock times of several ways to run the same batch, taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


def interleaved_medians(
    ways: dict[str, Callable[[Tensor], object]], batch: Tensor, rounds: int = 15
) -> dict[str, float]:
    """Median milliseconds of each way on ``batch``, over rounds that run every way once.

    Taking turns spreads whatever else the machine does over all of them alike.
    """
    samples: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for way in ways.values():
            way(batch)
        for _ in range(rounds):
            for name, way in ways.items():
                _wait_for(batch.device)
                started = time.perf_counter()
                way(batch)
                _wait_for(batch.device)
                samples[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(times) for name, times in samples.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
