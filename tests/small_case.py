"""A benchmark case of two ways that takes no time: what the benchmark's own tests measure."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.throughput.case import Case, Setting, Ways
from benchmarks.throughput.runner import run

TINY = Setting("cpu", tiny=True)


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def small_case(**more) -> Case:
    """Two good ways, and those in ``more``."""

    def build(setting: Setting) -> Ways:
        x = torch.ones(8, device=setting.device)
        ways = Ways("doubling", bytes_moved=2 * x.nbytes)
        ways.add("plain", lambda: x + x)
        ways.add_ours("better", lambda: double(x))
        for name, call in more.items():
            ways.add(name, call)
        ways.compare("is it better?", "better", "plain", 1.0)
        return ways

    return Case("small", build, rounds=7)


def small_run(folder: Path) -> Path:
    """The file of a run of the small case."""
    run([small_case()], folder, TINY)
    return folder / "small.json"
