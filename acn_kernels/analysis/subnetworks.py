"""How good every sub-network is, and what each layer adds: the paper's Fig. 1."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acn_kernels.analysis.results import Curves, Grid
from acn_kernels.inference.probe import accuracy_by_depth, collected_by_depth, probe
from acn_kernels.models import ImageClassifier

Batches = Iterable[tuple[Tensor, Tensor]]
_LBFGS_STEPS = 100
_SMALL = 10_000_000  # multiplications for the logits of all samples


def shared_head(model: ImageClassifier, data: Batches) -> Curves:
    """Accuracy by depth 0 .. L with the one head of the model: the sub-networks as they are."""
    return _by_depth("accuracy", {"shared head": probe(model, data).cpu()})


def linear_probes(
    model: ImageClassifier, train: Batches, test: Batches, weight_decay: float = 1e-3
) -> Curves:
    """Accuracy by depth on ``test`` of a fresh linear classifier at each depth 0 .. L.

    Each reads the pooled, normed sum y_k, standardised, and is fitted on ``train`` to the minimum
    of cross-entropy + weight_decay/2 |W|^2 (a convex problem: no seed, no learning rate). What
    they tell: how linearly separable the classes are at a depth, whatever the head does with it.
    """
    features, labels = features_by_depth(model, train)
    unseen, truth = features_by_depth(model, test)
    classes = int(labels.max()) + 1
    logits = []
    for known, new in zip(features, unseen, strict=True):
        mean, deviation = known.mean(0), known.std(0, correction=0).clamp(min=1e-6)
        fitted = _fitted((known - mean) / deviation, labels, classes, weight_decay)
        weight, bias = (t.to(new.device) for t in fitted)
        logits.append((new - mean) / deviation @ weight.T + bias)
    accuracy = accuracy_by_depth(torch.stack(logits), truth).cpu()
    return _by_depth("accuracy", {"linear probe": accuracy})


@torch.no_grad()
def features_by_depth(model: ImageClassifier, data: Batches) -> tuple[Tensor, Tensor]:
    """(pooled features [L+1, N, D] fp32 of every depth, labels [N]), in eval mode.

    Raises:
        ValueError: ``data`` holds no batch.
    """

    def pooled(inputs: Tensor) -> Tensor:
        sums = model.forward_intermediates(inputs)
        return torch.stack([model.forward_head(y, pre_logits=True).float() for y in sums])

    return collected_by_depth(model, data, pooled)


def contributions(accuracy: Tensor) -> Tensor:
    """Incremental layer contribution [..., L]: accuracy [..., L+1] of sub-network k minus that of
    k-1. Over training: of accuracies [epochs, L+1]."""
    return accuracy.diff(dim=-1)


def contributions_over_training(accuracy: Tensor) -> Grid:
    """The heat map, layers x epochs, of the contributions in accuracy [epochs, L+1]."""
    if accuracy.dim() != 2:
        raise ValueError(f"accuracy has shape {tuple(accuracy.shape)}; it takes [epochs, L+1]")
    values = contributions(accuracy).T
    return Grid("incremental layer contribution", "layer", "epoch", "share right", values)


def effective_depth(accuracy: Tensor) -> Tensor:
    """The mean depth at which accuracy [..., L+1] is gained, in layers.

    ``sum_k k c_k / sum_k c_k`` over the contributions c_k, which is the area between the full
    network's accuracy and the curve over its gain: 1 where the first layer brings everything, L
    where the last one does. Outside of [1, L] where accuracy falls on the way, far outside where
    depth gains next to nothing; NaN where it gains nothing.
    """
    gained = contributions(accuracy.double())
    layers = torch.arange(1, gained.shape[-1] + 1, dtype=torch.float64, device=gained.device)
    total = (accuracy[..., -1] - accuracy[..., 0]).double()  # no rounding where they are equal
    return torch.where(total == 0, torch.nan, (layers * gained).sum(-1) / total)


def _fitted(x: Tensor, labels: Tensor, classes: int, weight_decay: float) -> tuple[Tensor, Tensor]:
    # The line search asks for a number at every step: of a small problem a GPU's host waits for it
    # far longer than it would compute.
    if x.numel() * classes <= _SMALL:
        x, labels = x.cpu(), labels.cpu()
    weight = nn.Parameter(x.new_zeros(classes, x.shape[1]))
    bias = nn.Parameter(x.new_zeros(classes))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_LBFGS_STEPS, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels)
        loss = loss + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return weight.detach(), bias.detach()


def _by_depth(title: str, values: dict[str, Tensor]) -> Curves:
    depths = range(len(next(iter(values.values()))))
    return Curves(title, "depth", depths, "share right", values)
