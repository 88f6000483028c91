"""Launches of the whole-stack kernels of Linear + activation layers."""

from __future__ import annotations

import torch
from torch import Tensor

from acn_kernels.kernels.cases.case import RegisteredLaunch
from acn_kernels.kernels.launch import MAX_STACK_WIDTH, stack_tile
from acn_kernels.kernels.linear_stack import linear_stack
from acn_kernels.kernels.linear_stack_backward import linear_stack_backward
from acn_kernels.kernels.recorder import launches_of

_ROWS = 65_536
_DEPTH = 16
# So that a multiprocessor of sm_90 or later, of 228 KB, holds two programs.
_SHARED_BYTES = 113 * 1024
# Four warps with a few of their registers spilled, most on sm_89, are faster than eight without.
_SPILL_BYTES = 168


def launches() -> dict[str, RegisteredLaunch]:
    """Widths and activations that users meet; every option where it takes the most registers."""
    found = {}
    for width, dtype_name, dtype, activations in (
        (16, "bf16", torch.bfloat16, ("gelu",)),
        (64, "bf16", torch.bfloat16, ("gelu",)),
        (100, "bf16", torch.bfloat16, ("gelu",)),
        (128, "bf16", torch.bfloat16, ("relu", "gelu", "gelu_tanh", "silu")),
        (128, "fp16", torch.float16, ("gelu",)),
        (MAX_STACK_WIDTH, "bf16", torch.bfloat16, ("gelu", "silu")),
    ):
        for activation in activations:
            for label, call in calls(width, dtype, activation).items():
                launch, *_ = launches_of(*call)  # another adds shares: see rowwise.py
                name = f"{label}, {activation}, D={width}, {dtype_name}]"
                found[name] = RegisteredLaunch(launch, True, _SHARED_BYTES, _SPILL_BYTES)
    return found


def calls(width: int, dtype: torch.dtype, activation: str) -> dict[str, tuple]:
    """By a label each: a launcher and its arguments, on "meta"."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, weight, bias = empty(_ROWS, width), empty(_DEPTH, width, width), empty(_DEPTH, width)
    g = empty(_ROWS, width, dtype=torch.float32)
    kept = empty(_DEPTH, _ROWS, stack_tile(width).width)
    scales = empty(_DEPTH + 1, dtype=torch.float32)
    norm = (empty(width), empty(width), 1e-5, "layer")

    def forward(scales: Tensor | None, keep: bool) -> tuple:
        return linear_stack, x, weight, bias, scales, *norm, activation, True, keep, dtype

    def backward(scales: Tensor | None) -> tuple:
        return linear_stack_backward, g, x, weight, bias, scales, kept, activation, True

    return {
        "linear_stack[inference": forward(None, False),
        "linear_stack[training": forward(None, True),
        "linear_stack[training, scales": forward(scales, True),
        "linear_stack_backward[plain": backward(None),
        "linear_stack_backward[scales": backward(scales),
    }
