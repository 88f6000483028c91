"""A cutoff depth and an exit threshold that keep a quality bound on samples not yet seen.

Candidates are tested in an order fixed beforehand, from the safest to the boldest, and the first
that fails ends the row; so testing many of them costs no confidence (fixed-sequence testing). Each
test takes half of what the two choices may fail together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from acn_kernels.inference.calibration import check_drop, check_full
from acn_kernels.inference.early_exit import entropy, first_exit
from acn_kernels.inference.paired import Paired, least_samples
from acn_kernels.inference.probe import right
from acn_kernels.validation import check_labels

CONFIDENCE = 0.95  # 19 of 20
_Z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2)
_THRESHOLDS = 100  # candidates, evenly from 0 to the entropy of a uniform guess


@dataclass(frozen=True)
class Drop:
    """Accuracy below the full network's, in [-1, 1]: on the calibration set, and the range that
    its size leaves (95 %, both sides together)."""

    measured: float
    low: float
    high: float

    @classmethod
    def of(cls, full_right: Tensor, other_right: Tensor) -> Drop:
        paired = Paired.of(full_right, other_right)
        return cls(paired.drop, *paired.interval(_Z))

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.measured:.2f} points ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Choice:
    """depth: layers to keep. threshold: of the entropy, in nats, at ``exits``. exit_depths: [N],
    the layers that each calibration sample then goes through."""

    depth: int
    depth_drop: Drop
    exits: tuple[int, ...]
    threshold: float
    threshold_drop: Drop
    exit_depths: Tensor


def choose(logits: Tensor, labels: Tensor, exits: Sequence[int], max_drop: float) -> Choice:
    """The smallest depth and the largest threshold that are shown to cost at most ``max_drop``.

    Args:
        logits: [L+1, N, classes] of all sub-networks. labels: [N].
        exits: depths in [1, L-1].
        max_drop: of accuracy, in (0, 1].

    Raises:
        TypeError, ValueError: there are too few samples to show it of anything, ``labels`` are of
            another kind or shape, or the full network's logits hold NaN.
    """
    check_drop(max_drop)
    check_labels(labels, logits.shape[-1], logits.shape[1])
    check_full(logits)
    least = least_samples(max_drop, _Z)
    if len(labels) < least:
        wanted = "no number of samples is enough" if least == math.inf else (
            f"it takes at least {math.ceil(least)}"
        )  # fmt: skip
        raise ValueError(
            f"data holds {len(labels)} samples; to show a drop of at most {max_drop:g} with "
            f"{CONFIDENCE:.0%} confidence, even of a network that is never wrong where the full "
            f"one is right, {wanted}"
        )
    by_depth = right(logits, labels)
    depth = len(logits) - 1
    while depth > 0 and _keeps(by_depth[-1], by_depth[depth - 1], max_drop):
        depth -= 1
    certainty, everyone = entropy(logits), torch.arange(len(labels), device=labels.device)
    threshold, threshold_right = 0.0, by_depth[-1]
    exit_depths = torch.full_like(labels, len(logits) - 1)
    most = math.log(max(logits.shape[-1], 2))
    for step in range(1, _THRESHOLDS + 1) if exits else ():
        candidate = most * step / _THRESHOLDS
        leaving = first_exit(certainty, exits, candidate)
        candidate_right = by_depth[leaving, everyone]
        if not _keeps(by_depth[-1], candidate_right, max_drop):
            break
        threshold, threshold_right, exit_depths = candidate, candidate_right, leaving
    return Choice(
        depth,
        Drop.of(by_depth[-1], by_depth[depth]),
        tuple(exits),
        threshold,
        Drop.of(by_depth[-1], threshold_right),
        exit_depths,
    )


def _keeps(full_right: Tensor, other_right: Tensor, max_drop: float) -> bool:
    return Paired.of(full_right, other_right).score(max_drop) <= -_Z
