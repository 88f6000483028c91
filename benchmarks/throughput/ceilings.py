"""What the machine can do at most, measured at the start of every run: nothing that is reported as
a share of a ceiling rests on a data sheet."""

from __future__ import annotations

import statistics

import torch

from acn_kernels.timing import interleaved_seconds
from benchmarks.throughput.case import Setting

_ROUNDS = 11


def ceilings(setting: Setting) -> dict[str, float]:
    """copy_bytes_per_s: read and written by a copy past every cache; matmul_flops_per_s: of the
    fastest of a few large square products in the setting's dtype."""
    return {
        "copy_bytes_per_s": copy_rate(setting),
        "matmul_flops_per_s": max(matmul_rate(setting, size) for size in _sizes(setting)),
    }


def copy_rate(setting: Setting) -> float:
    elements = setting.size(2**28 if setting.on_gpu else 2**26, 2**18)
    source = torch.randn(elements // 4, device=setting.device)
    target = torch.empty_like(source)
    seconds = _median(lambda: target.copy_(source), setting)
    return 2 * source.nbytes / seconds


def matmul_rate(setting: Setting, size: int) -> float:
    a, b = torch.randn(2, size, size, **setting.place)
    return 2 * size**3 / _median(lambda: a @ b, setting)


def _sizes(setting: Setting) -> tuple[int, ...]:
    if setting.tiny:
        return (64,)
    return (4096, 8192, 16384) if setting.on_gpu else (1024, 2048)


def _median(way, setting: Setting) -> float:
    rounds = 3 if setting.tiny else _ROUNDS
    samples = interleaved_seconds({"": way}, rounds, setting.device, warmup=2, queued=True)
    return statistics.median(samples[""])
