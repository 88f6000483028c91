"""Weights taken out of the blocks of a trained network, for Fig. 7."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import prune

from acn_kernels.training.digits import Split
from acn_kernels.training.trainer import Recipe, Trainer
from benchmarks.paper.trained import accuracy

Weights = list[tuple[nn.Module, str]]


def linear_weights(model: nn.Module) -> Weights:
    """Of all linear layers in the blocks."""
    return [(m, "weight") for m in model.blocks.modules() if isinstance(m, nn.Linear)]


def by_magnitude(model: nn.Module, kept: float) -> nn.Module:
    """A copy in which the share ``kept`` of the weights is left, the largest of all blocks."""
    pruned = copy.deepcopy(model)
    prune.global_unstructured(linear_weights(pruned), prune.L1Unstructured, amount=1 - kept)
    return pruned


def by_movement(
    model: nn.Module, recipe: Recipe, train: Split, test: Split, dropped: float
) -> tuple[list[float], list[float]]:
    """Movement pruning (arXiv 2005.07683): fine-tunes a copy and drops, after each epoch but the
    last, the share ``dropped`` of what is left of the weights: those with the lowest
    ``-sum gradient * weight`` over all steps so far, which moved towards zero.

    Returns:
        (the share of the weights that was kept, the test accuracy), at the end of each epoch but
        the first, so that every size has been trained for one.
    """
    pruned = copy.deepcopy(model)
    weights = linear_weights(pruned)
    for module, name in weights:
        prune.identity(module, name)
    scores = {key: torch.zeros_like(key[0].weight_orig) for key in weights}

    @torch.no_grad()
    def add_up() -> None:
        for (module, _), score in scores.items():
            score -= module.weight_orig.grad * module.weight_orig

    trainer = Trainer(pruned, recipe, len(train.labels), after_backward=add_up)
    kept, accuracies = [], []
    while not trainer.done:
        trainer.train_epoch(train)
        if trainer.epoch > 1:
            kept.append(share_kept(weights))
            accuracies.append(accuracy(pruned, test))
        if trainer.done:
            break
        least = min(score.min() for score in scores.values())
        prune.global_unstructured(
            weights, prune.L1Unstructured, amount=dropped,
            importance_scores={key: score - least for key, score in scores.items()},
        )  # fmt: skip
    return kept, accuracies


def share_kept(weights: Weights) -> float:
    """Of the weights that are pruned, the share which the masks leave."""
    masks = [module.weight_mask for module, _ in weights]
    return (sum(mask.sum() for mask in masks) / sum(mask.numel() for mask in masks)).item()
