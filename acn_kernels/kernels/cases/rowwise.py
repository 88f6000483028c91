"""Launches of the row-wise kernels: fork, join, accumulate_norm, bias_gelu, and of what adds up
the shares that they leave."""

from __future__ import annotations

import torch
from torch import Tensor

from acn_kernels.kernels.accumulate_norm import accumulate_norm
from acn_kernels.kernels.bias_gelu import bias_gelu, bias_gelu_backward
from acn_kernels.kernels.cases.case import RegisteredLaunch
from acn_kernels.kernels.fork import fork_backward, fork_forward
from acn_kernels.kernels.join import join_forward
from acn_kernels.kernels.launch import MAX_SOURCES, MAX_WIDTH
from acn_kernels.kernels.recorder import launches_of
from acn_kernels.kernels.shares import add_shares, shares_of

# Narrow, ViT-S, ViT-B, odd, and the widest; fp32 where its registers matter most.
CONFIGURATIONS = (
    *((width, "bf16", torch.bfloat16) for width in (64, 384, 768, 1000, MAX_WIDTH)),
    *((width, "fp32", torch.float32) for width in (64, 768, MAX_WIDTH)),
)
_ROWS = 4096
_TOKENS = 256
_PROGRAMS = 1056  # of a backward pass on an H200


def launches() -> dict[str, RegisteredLaunch]:
    """One launch for each kernel and configuration that users meet, by a name that tells both."""
    found = {}
    for width, dtype_name, dtype in CONFIGURATIONS:
        for label, call in _calls(width, dtype).items():
            launch, *_ = launches_of(*call)  # another adds shares: a case of its own
            found[f"{label}, D={width}, {dtype_name}]"] = RegisteredLaunch(launch)
    return found


def _calls(width: int, dtype: torch.dtype) -> dict[str, tuple]:
    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(_ROWS // _TOKENS, _TOKENS, width)
    few = empty(_ROWS // _TOKENS, 2, width)
    weight, bias = empty(width), empty(width)
    mean, rstd = empty(_ROWS, dtype=torch.float32), empty(_ROWS, dtype=torch.float32)
    y = torch.empty_like(x, dtype=torch.float32)
    y_few = torch.empty_like(few, dtype=torch.float32)
    scale, row_map = empty(dtype=torch.float32), empty(_TOKENS, dtype=torch.int32)
    eps = 1e-5

    def join(sources: int, scaled: bool, kind: str) -> tuple:
        scales = empty(sources, dtype=torch.float32) if scaled else None
        norm = (None, None) if kind == "none" else (weight, bias if kind == "layer" else None)
        return join_forward, [x] * sources, scales, *norm, eps, kind, dtype

    def sums(*parameters: Tensor) -> tuple:
        return add_shares, shares_of(parameters, _PROGRAMS, x.device), parameters, x

    backward = (fork_backward, x)
    stats = (mean, rstd)
    return {
        "fork_forward[layer": (fork_forward, x, weight, bias, eps, "layer"),
        "fork_forward[rms": (fork_forward, x, weight, None, eps, "rms"),
        "fork_backward[layer": (*backward, x, x, weight, bias, *stats, None, None, "layer"),
        "fork_backward[rms": (*backward, x, x, weight, None, *stats, None, None, "rms"),
        "fork_backward[layer, no direct gradient": (
            *backward, None, x, weight, bias, *stats, None, None, "layer",
        ),
        "fork_backward[layer, learned scale": (
            *backward, x, x, weight, bias, *stats, scale, None, "layer",
        ),
        "fork_backward[layer, rows": (
            *backward, few, x, weight, bias, *stats, None, row_map, "layer",
        ),
        "fork_backward[layer, learned scale, rows": (
            *backward, few, x, weight, bias, *stats, scale, row_map, "layer",
        ),
        "join[13 sources, layer": join(13, False, "layer"),
        "join[13 sources, rms": join(13, False, "rms"),
        "join[13 sources, no norm": join(13, False, "none"),
        "join[13 scaled sources, layer": join(13, True, "layer"),
        f"join[{MAX_SOURCES} scaled sources, layer": join(MAX_SOURCES, True, "layer"),
        "bias_gelu[forward": (bias_gelu, x, bias),
        "bias_gelu[backward": (bias_gelu_backward, x, x, bias),
        "add_shares[one": sums(weight),
        "add_shares[three": sums(weight, bias, scale),
        "accumulate_norm[layer": (
            accumulate_norm, x, y, False, None, 1.0, None, weight, bias, eps, "layer", dtype,
        ),
        "accumulate_norm[rms, scale, rows": (
            accumulate_norm, x, y_few, False, scale, 1.0, row_map, weight, None, eps, "rms", dtype,
        ),
        "accumulate_norm[layer, of the sum": (
            accumulate_norm, x, y, False, None, 0.0, None, weight, bias, eps, "layer", dtype,
        ),
    }  # fmt: skip
