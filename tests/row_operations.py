"""Calls of the row-wise launchers in every configuration that changes what they move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from layers import packed
from torch import Tensor

from acn_kernels.kernels.accumulate_norm import accumulate_norm
from acn_kernels.kernels.fork import fork_backward, fork_forward
from acn_kernels.kernels.join import join_forward
from acn_kernels.kernels.launch import row_tile

ROW_MAP = [0, -1, -1, 1, -1]  # the place of each of five tokens among the two that y keeps


def row_operations(
    width: int,
    dtype: torch.dtype = torch.float32,
    layout: Callable[..., Tensor] = packed,
    device: str = "cpu",
    batch: int | None = None,
    tokens: int = 5,
) -> dict[str, tuple]:
    """(launcher, arguments ...) by a name; no tensor is given twice.

    batch, tokens: by default the fewest samples that take several programs and leave the last
    with a tail; at most five tokens.
    """
    batch = batch or 2 * row_tile(width).rows // tokens + 1
    places = ROW_MAP[:tokens]
    single, few = torch.float32, (batch, max(places) + 1, width)

    def some(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def big() -> Tensor:
        return layout((batch, tokens, width), dtype, device)

    def sum_so_far() -> Tensor:
        return some(batch, tokens, width, dtype=single)

    def affine(bias: bool = True) -> tuple[Tensor, Tensor | None]:
        return some(width), some(width) if bias else None

    def backward(
        g: Tensor | None, kind: str, scale: Tensor | None, row_map: Tensor | None
    ) -> tuple:
        mean, rstd = (some(batch * tokens, dtype=single) for _ in range(2))
        norm = (*affine(kind == "layer"), mean, rstd)
        return fork_backward, big(), g, big(), *norm, scale, row_map, kind

    scale = torch.tensor(0.5, device=device)
    row_map = torch.tensor(places, dtype=torch.int32, device=device)
    step = (accumulate_norm, big())
    bare = (None, None, 0.0, "none", dtype)
    return {
        "forward, layer": (fork_forward, big(), *affine(), 1e-5, "layer"),
        "forward, rms": (fork_forward, big(), *affine(False), 1e-5, "rms"),
        "backward, layer": backward(big(), "layer", None, None),
        "backward, rms, scale": backward(big(), "rms", scale, None),
        "backward, no direct": backward(None, "layer", None, None),
        "backward, rows": backward(some(*few), "layer", scale, row_map),
        "join": (join_forward, [big() for _ in range(4)], None, *affine(), 1e-5, "layer", dtype),
        "join, no norm": (join_forward, [big() for _ in range(3)], some(3), *bare),
        "step": (*step, sum_so_far(), False, None, 1.0, None, *affine(), 1e-5, "layer", dtype),
        "step, first": (*step, sum_so_far(), True, scale, 0.3, None, *bare),
        "step, rows": (
            *step, some(*few, dtype=single), False, scale, 1.0, row_map,
            *affine(False), 1e-5, "rms", dtype,
        ),
    }  # fmt: skip
