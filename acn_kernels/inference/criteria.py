"""When the shared head is sure enough of a sample for it to leave."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from acn_kernels.functional import entropy
from acn_kernels.reference import sum_dtype
from acn_kernels.validation import check_depth

CRITERIA = ("entropy", "probability", "margin")


def check_criterion(criterion: str, threshold: float) -> None:
    """Raises TypeError or ValueError where either is none that :class:`EarlyExit` takes."""
    if criterion not in CRITERIA:
        raise ValueError(f"criterion is {criterion!r}; it takes one of {', '.join(CRITERIA)}")
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real):
        raise TypeError(f"threshold is a {type(threshold).__name__}; it takes a number")
    if criterion == "entropy" and not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; it takes a number of nats, at least 0")
    if criterion != "entropy" and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it takes a number from 0 to 1")


def listed_exits(exits: Sequence[int]) -> list[int]:
    if not isinstance(exits, Iterable) or isinstance(exits, str):
        raise TypeError(f"exits is {exits!r}; it takes a list of depths")
    return list(exits)


def check_exits(exits: Sequence[int], layers: int) -> list[int]:
    """``exits`` in order, once each; raises where one is no depth from 1 to ``layers`` - 1."""
    exits = listed_exits(exits)
    for k in exits:
        if not 0 < check_depth(k, layers, True, "exits") < layers:
            raise ValueError(f"exits holds {k}; it takes depths from 1 to {layers - 1}")
    return sorted(set(exits))


def certainty(logits: Tensor, criterion: str) -> Tensor:
    """What ``criterion`` compares, of logits [..., C] over the last axis; NaN where they hold one.

    "entropy" of the softmax in nats; its largest "probability"; the "margin" of that over the
    next one (over nothing where there is one class).
    """
    if criterion == "entropy":
        return entropy(logits)
    shares = logits.to(sum_dtype(logits.dtype)).softmax(-1)
    if criterion == "probability" or shares.shape[-1] == 1:
        return shares.amax(-1)
    first, second = torch.topk(shares, 2, dim=-1).values.unbind(-1)
    return first - second


def is_sure(certainty: Tensor, criterion: str, threshold: float) -> Tensor:
    """Where a sample may leave: an entropy below the threshold, the others above it; never NaN."""
    return certainty < threshold if criterion == "entropy" else certainty > threshold
