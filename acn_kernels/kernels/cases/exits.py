"""Launches of the early-exit kernels: the exit itself and the compaction after it."""

from __future__ import annotations

import torch
from torch import Tensor

from acn_kernels.kernels.cases.case import RegisteredLaunch
from acn_kernels.kernels.compaction import compact
from acn_kernels.kernels.exit_head import exit_head
from acn_kernels.kernels.launch import MAX_WIDTH
from acn_kernels.kernels.recorder import launches_of

_BATCH = 256
# (tokens, width, classes): the CIFAR Mixer, ViT-S/16, ViT-B/16, odd sizes, the widest.
CONFIGURATIONS = (
    (64, 128, 10, "bf16", torch.bfloat16),
    (196, 384, 1000, "bf16", torch.bfloat16),
    (196, 768, 1000, "bf16", torch.bfloat16),
    (197, 1000, 3, "bf16", torch.bfloat16),
    (512, MAX_WIDTH, 50257, "bf16", torch.bfloat16),
    (64, 128, 10, "fp32", torch.float32),
    (196, 768, 1000, "fp32", torch.float32),
)


def launches() -> dict[str, RegisteredLaunch]:
    """The exit of every configuration, with all options at ViT-B's, and compactions of what a
    stack carries from one exit to the next."""
    found = {}
    for tokens, width, classes, dtype_name, dtype in CONFIGURATIONS:
        size = f"{tokens}x{width}, {classes} classes, {dtype_name}"
        for label, call in _exits(tokens, width, classes, dtype).items():
            if label == "mean" or width == 768:
                (launch,) = launches_of(*call)
                found[f"exit_head[{label}, {size}]"] = RegisteredLaunch(launch)
    stays = _empty(_BATCH, dtype=torch.bool)
    for label, x in {
        "64x128, bf16": _empty(_BATCH, 64, 128),
        "196x768, fp32": _empty(_BATCH, 196, 768, dtype=torch.float32),
        "17x33, bf16": _empty(_BATCH, 17, 33),
        "indices": _empty(_BATCH, dtype=torch.int64),
    }.items():
        (launch,) = launches_of(compact, stays, [x], None)
        found[f"compact[{label}]"] = RegisteredLaunch(launch)
    return found


def _exits(tokens: int, width: int, classes: int, dtype: torch.dtype) -> dict[str, tuple]:
    def empty(*shape: int) -> Tensor:
        return _empty(*shape, dtype=dtype)

    x, y = empty(_BATCH, tokens, width), _empty(_BATCH, tokens, width, dtype=torch.float32)
    norm = (empty(width), empty(width), 1e-5, "layer")
    head = (empty(classes, width), empty(classes), 0.7)
    scale = _empty(dtype=torch.float32)
    return {
        "mean": (exit_head, x, y, None, *norm, "mean", *head),
        "mean, scale, rms": (
            exit_head, x, y, scale, empty(width), None, 1e-6, "rms", "mean", *head,
        ),
        "first": (exit_head, x, y, None, *norm, "first", *head),
        "output alone": (exit_head, x, None, None, None, None, 0.0, "none", "mean", *head),
    }  # fmt: skip


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
