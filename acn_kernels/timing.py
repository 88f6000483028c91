"""Wall-clock times of several ways to do the same work, taken in turn."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def interleaved_seconds(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    warmup: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each way in each of ``rounds`` rounds that run every way once.

    Taking turns spreads whatever else the machine does over all of them alike; every other round
    goes backwards, so that no way always follows the same one. On CUDA the clock waits for the
    device before and after.
    """
    device = torch.device(device)
    names = list(ways)
    for _ in range(warmup):
        for way in ways.values():
            way()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names if i % 2 == 0 else reversed(names):
            _wait_for(device)
            started = time.perf_counter()
            ways[name]()
            _wait_for(device)
            samples[name].append(time.perf_counter() - started)
    return samples


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
