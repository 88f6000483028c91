"""How deep, and how sure: the cutoff depth and the exit threshold that a quality bound allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acn_kernels.inference.criteria import check_exits
from acn_kernels.inference.early_exit import entropy, first_exit
from acn_kernels.inference.probe import right
from acn_kernels.validation import check_labels


def cutoff_depth(accuracy: Tensor, max_drop: float) -> int:
    """The smallest depth whose accuracy is within ``max_drop`` of the full network's.

    Args:
        accuracy: [L+1], in [0, 1], by depth.
        max_drop: in [0, 1], 0.01 is one point.

    Raises:
        ValueError: an accuracy is NaN, ``accuracy`` of another shape, or ``max_drop`` out of range.
    """
    check_drop(max_drop)
    if accuracy.dim() != 1 or not len(accuracy):
        raise ValueError(f"accuracy has shape {tuple(accuracy.shape)}; it takes [L+1]")
    if accuracy.isnan().any():
        raise ValueError(f"accuracy is {accuracy.tolist()}; it takes numbers")
    good = accuracy >= accuracy[-1] - max_drop - 1e-12
    return int(good.to(torch.int).argmax())


def exit_threshold(logits: Tensor, labels: Tensor, exits: Sequence[int], max_drop: float) -> float:
    """The largest entropy threshold (nats) at which early exit stays within ``max_drop``.

    Args:
        logits: [L+1, N, classes] of all sub-networks on calibration samples. labels: [N].
        exits: depths at which samples may leave before L.
        max_drop: of accuracy, in [0, 1].

    Returns:
        0.0 (nobody leaves early) where no threshold is good enough.

    Raises:
        TypeError, ValueError: an exit is no depth from 1 to L-1, a label none of the classes,
            ``labels`` of another shape, ``max_drop`` out of range, or the full network's logits
            hold NaN.
    """
    check_drop(max_drop)
    exits = check_exits(exits, len(logits) - 1)
    check_labels(labels, logits.shape[-1], logits.shape[1])
    check_full(logits)
    full = right(logits[-1], labels).double().mean()
    certainty = entropy(logits)
    candidates = certainty[exits].flatten().unique()
    candidates = candidates[~candidates.isnan()]  # who is never sure sets no threshold
    best = 0.0
    if not len(candidates):
        return best
    # Accuracy is no monotone function of the threshold: every grid point is tried.
    for threshold in candidates.quantile(torch.linspace(0, 1, 201).to(candidates)):
        depth = first_exit(certainty, exits, float(threshold))
        chosen = logits[depth, torch.arange(len(labels))]
        accuracy = right(chosen, labels).double().mean()
        if accuracy >= full - max_drop - 1e-12:
            best = max(best, float(threshold))
    return best


def check_full(logits: Tensor) -> None:
    """Raises ValueError where the full network's logits, the last of [L+1, N, classes], hold NaN:
    beside one that has diverged any other would do."""
    lost = int(logits[-1].isnan().any(-1).sum())
    if lost:
        raise ValueError(
            f"the full network's logits are NaN for {lost} of {logits.shape[1]} samples; it takes "
            "a network that has an answer to all of them"
        )


def check_drop(max_drop: float) -> None:
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is {max_drop}; it takes a number from 0 to 1")
