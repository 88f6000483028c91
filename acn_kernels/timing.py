"""Wall-clock times of several ways to do the same work, taken in turn."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable

import torch

_CYCLES_TO_QUEUE_IN = 2_000_000  # about a millisecond: longer than Python takes to launch a kernel
_MOST_CYCLES = 2**27


def interleaved_seconds(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    warmup: int = 1,
    queued: bool = False,
    before: Callable[[], object] | None = None,
    least: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each way in each of ``rounds`` rounds that run every way once.

    Taking turns spreads whatever else the machine does over all of them alike. Every round has an
    order of its own (the same from run to run), so that no way always inherits the caches and the
    heap of the same one. On CUDA the clock waits for the
    device before and after; with ``queued``, work is queued behind a busy device and timed by the
    device's own events, so that what single kernels take shows and not their launch. ``before``
    runs ahead of every sample and is not timed. A way that takes fewer than ``least`` seconds is
    called again until they have passed, and the sample is the mean: what a call takes in a stream
    of them, not what it costs to fill the caches that the way before has emptied.
    """
    device = torch.device(device)
    timed = functools.partial(_timed, least=least)
    if queued and device.type == "cuda":
        timed = _timed_queued
    names = list(ways)
    for _ in range(warmup):
        for way in ways.values():
            way()
    samples: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            samples[name].append(timed(ways[name], device, before or _nothing))
    return samples


def _nothing() -> None:
    pass


def _timed(
    way: Callable[[], object],
    device: torch.device,
    before: Callable[[], object],
    least: float,
) -> float:
    before()
    _wait_for(device)
    calls, seconds, started = 0, 0.0, time.perf_counter()
    while calls == 0 or seconds < least:
        way()
        _wait_for(device)
        calls, seconds = calls + 1, time.perf_counter() - started
    return seconds / calls


def _timed_queued(
    way: Callable[[], object], device: torch.device, before: Callable[[], object]
) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cycles = _CYCLES_TO_QUEUE_IN
    with torch.cuda.device(device):
        while True:
            torch.cuda._sleep(cycles)
            before()
            begin.record()
            way()
            end.record()
            late = begin.query()  # the device was there before all was launched, and had to wait
            end.synchronize()
            if not late or cycles >= _MOST_CYCLES:
                return begin.elapsed_time(end) / 1e3
            cycles *= 4


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
