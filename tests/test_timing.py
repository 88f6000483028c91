"""Times taken on a device that works behind the host's back."""

from __future__ import annotations

import contextlib

import pytest
import torch

from acn_kernels.timing import interleaved_seconds


class Device:
    """A clock of its own: it sleeps, in cycles, while the host launches a way in ``launching``."""

    def __init__(self, launching: int) -> None:
        self.launching, self.slept = launching, []

    def sleep(self, cycles: int) -> None:
        self.slept.append(cycles)

    def event(self, enable_timing: bool) -> Event:
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return self._device.slept[-1] < self._device.launching

    def elapsed_time(self, end: Event) -> float:
        return 5.0


@pytest.mark.parametrize(
    ("launching", "slept"),
    [
        (1_000_000, [2_000_000]),
        (9_000_000, [2_000_000, 8_000_000, 32_000_000]),
        (2**40, [2_000_000, 8_000_000, 32_000_000, 128_000_000, 512_000_000]),
    ],
)
def test_the_device_is_kept_busy_until_all_is_launched(monkeypatch, launching, slept):
    device, calls = Device(launching), []
    monkeypatch.setattr(torch.cuda, "_sleep", device.sleep)
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    seconds = interleaved_seconds(
        {"way": lambda: calls.append(1)}, 1, "cuda", warmup=0, queued=True
    )
    assert seconds == {"way": [0.005]}
    assert device.slept == slept and len(calls) == len(slept)
