"""Launches of the whole-stack kernels of Mixer blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from acn_kernels.kernels.cases.case import RegisteredLaunch
from acn_kernels.kernels.mixer_exit import mixer_exit
from acn_kernels.kernels.mixer_stack import mixer_stack
from acn_kernels.kernels.mixer_stack_backward import mixer_stack_backward
from acn_kernels.kernels.recorder import launches_of

_SAMPLES = 512
_CLASSES = {"": 10, "100 classes, ": 100}  # one chunk of them, and several
# So that a multiprocessor of sm_90 or later, of 228 KB, holds two programs.
_SHARED_BYTES = 113 * 1024
# A sample in four warps is twice as fast as in the eight that would hold it without a spill; most
# goes in the token MLP's backward pass.
_SPILL_BYTES = 576


class Sizes(NamedTuple):
    """A Mixer: tokens, width, hidden widths of its two MLPs, layers."""

    tokens: int
    width: int
    token_hidden: int
    channel_hidden: int
    depth: int


CIFAR = Sizes(64, 128, 64, 512, 16)
DIGITS = Sizes(16, 64, 32, 128, 8)


class Form(NamedTuple):
    """vectors: the dtype of biases and norms, which under autocast keep their own."""

    dtype: torch.dtype
    vectors: torch.dtype
    closing: bool = False


_PLAIN = {
    "bf16": Form(torch.bfloat16, torch.bfloat16),
    "fp16": Form(torch.float16, torch.float16),
    "bf16 autocast": Form(torch.bfloat16, torch.float32),
}


def launches() -> dict[str, RegisteredLaunch]:
    """The presets that are narrow enough, as they are; the closing step on the small one."""
    found = {}
    for name, sizes, forms in (
        ("cifar", CIFAR, _PLAIN),
        ("digits", DIGITS, _PLAIN | {"closing, bf16": Form(*2 * [torch.bfloat16], closing=True)}),
    ):
        for form, made in forms.items():
            for label, call in calls(sizes, made).items():
                # Of a sweep's launches, which differ by kernel alone, one of each kernel.
                kernels = {launch.kernel.__name__: launch for launch in launches_of(*call)}
                for kernel, launch in kernels.items():
                    part = f"{kernel}, " if len(kernels) > 1 else ""
                    found[f"{label}{part}{name}, {form}]"] = RegisteredLaunch(
                        launch, True, _SHARED_BYTES, _SPILL_BYTES
                    )
    return found


def calls(sizes: Sizes, form: Form) -> dict[str, tuple]:
    """By a label each: a launcher and its arguments, on "meta"."""

    def empty(*shape: int, dtype: torch.dtype = form.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tokens, width, token_hidden, channel_hidden, depth = sizes
    matrices = [
        *((width,), (width,), (token_hidden, tokens), (token_hidden,)),
        *((tokens, token_hidden), (tokens,), (width,), (width,)),
        *((channel_hidden, width), (channel_hidden,), (width, channel_hidden), (width,)),
        *((width, width), (width,), (width,), (width,)),
    ]
    parameters = [
        empty(depth, *shape, dtype=form.vectors if len(shape) == 1 else form.dtype)
        for shape in (matrices if form.closing else matrices[:12])
    ]
    x, scales = empty(_SAMPLES, tokens, width), empty(depth + 1, dtype=torch.float32)
    alpha = empty(depth, dtype=torch.float32)
    g, kept = torch.empty_like(x), empty(depth, *x.shape)
    norm = (empty(width), empty(width), 1e-5, 1e-5, "layer", True)
    exits = {
        f"mixer_exit[{label}": (
            *(mixer_exit, x, parameters, None, empty(width), empty(width)),
            *(empty(depth + 1, dtype=torch.int32), empty(classes, width), empty(classes)),
            *(1e-5, 1e-5, "layer", True, "mean", 0.7),
        )
        for label, classes in _CLASSES.items()
        if form.vectors == form.dtype  # never under autocast
    }
    return {
        "mixer_stack[inference, ": (
            *(mixer_stack, x, parameters, None, None, *norm, False, form.dtype),
        ),
        "mixer_stack[inference, mixed, ": (
            *(mixer_stack, x, parameters, alpha, None, *norm, False, form.dtype),
        ),
        **exits,
        "mixer_stack[training, scales, ": (
            *(mixer_stack, x, parameters, None, scales, *norm, True, form.dtype),
        ),
        "mixer_stack[training, mixed, ": (
            *(mixer_stack, x, parameters, alpha, None, *norm, True, form.dtype),
        ),
        "mixer_stack_backward[": (
            *(mixer_stack_backward, g, x, kept, parameters, None, scales, 1e-5, True),
        ),
        "mixer_stack_backward[mixed, ": (
            *(mixer_stack_backward, g, x, kept[1:], parameters, alpha, None, 1e-5, True),
        ),
    }
