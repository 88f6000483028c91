"""A small residual model taken apart by hand, and put together again by the equations.

A case names the input x_0 of a model's blocks, the sublayers (norm, f) of every block, and what
follows the blocks. ``loop`` runs them for any alpha; at alpha = 0 it has to be the library's own
model, which is checked first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

B, T, D = 2, 5, 16
Sublayer = tuple[nn.Module, Callable[[Tensor], Tensor]]


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict]
    start: Callable[..., Tensor]  # (model, **inputs) -> x_0
    blocks: Callable[..., list[list[Sublayer]]]  # (model, x_0, **inputs)
    finish: Callable[[nn.Module, Tensor], Tensor]  # (model, y) -> what ``output`` picks
    output: Callable = lambda result: result
    post: bool = False


def loop(case: Case, model: nn.Module, inputs: dict, alpha: float, granularity: str) -> Tensor:
    """The network of DESIGN's equations from the parts of a residual one."""
    x = case.start(model, **inputs)
    blocks = case.blocks(model, x, **inputs)
    network = post_norm_network if case.post else pre_norm_network
    return case.finish(model, network(blocks, x, alpha, granularity)[-1])


def pre_norm_network(blocks, x, alpha, granularity) -> list[Tensor]:
    """[y_0, .. y_L]"""
    y, sums = x, [x]
    for block in blocks:
        if granularity == "sublayer":
            for norm, f in block:
                x = f(norm(alpha * x + (1 - alpha) * y))
                y = y + x
        else:
            (norm1, f1), (norm2, f2) = block
            u = alpha * x + (1 - alpha) * y
            h = f1(norm1(u))
            x = f2(norm2(h + (1 - alpha) * u)) + (1 - alpha) * h
            y = y + x
        sums.append(y)
    return sums


def post_norm_network(blocks, x, alpha, granularity) -> list[Tensor]:
    """[x_0, .. x_L + alpha sum_{i<L} x_i]"""
    terms, outputs = [], [x]
    for block in blocks:
        terms.append(x)
        for k, (norm, f) in enumerate(block):
            if k and granularity == "sublayer":
                terms.append(x)
            x = norm(f(x) + (1 - alpha) * x)
        outputs.append(x + alpha * sum(terms))
    return outputs
