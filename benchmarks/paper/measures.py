"""What is measured of trained networks: plain numbers, and lists of them for pictures."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from acn_kernels import analysis
from acn_kernels.inference import cutoff_depth
from acn_kernels.training.digits import Split
from acn_kernels.training.schedules import BottomUpAlpha
from benchmarks.paper.data import Prepared
from benchmarks.paper.networks import build, one_input
from benchmarks.paper.spec import Metrics, Plan, Training
from benchmarks.paper.trained import Context, Trained, accuracy_by_depth, batches

CUTOFF_DROP = 0.01  # a point of accuracy
_PROBED = 1000  # samples that linear probes are fitted on
_GRADIENT_BATCH = 256


def depth_profile(model, data: Split) -> Metrics:
    """Accuracy with the shared head by depth, and what follows from it.

    half_drop: accuracy lost with half the layers. cutoff: layers that come within a point of the
    full network; depth_used: their share; effective_depth: as a share of L.
    """
    accuracy = accuracy_by_depth(model, data)
    layers = len(accuracy) - 1
    cutoff = cutoff_depth(accuracy, CUTOFF_DROP)
    return {
        "accuracy": accuracy[-1].item(),
        "accuracy_by_depth": accuracy.tolist(),
        "half_drop": (accuracy[-1] - accuracy[layers // 2]).item(),
        "cutoff": cutoff,
        "depth_used": cutoff / layers,
        "effective_depth": analysis.effective_depth(accuracy).item() / layers,
    }


def profile(context: Context, plan: Plan, network: str) -> Metrics:
    """The depth profile of one of a plan's networks: what many experiments measure."""
    training = plan.trainings[network]
    return depth_profile(context.trained(training).model, context.data(training.data).test)


def linear_probes(model, data: Prepared) -> list[float]:
    """Accuracy by depth of fresh linear classifiers."""
    known = Split(data.train.images[:_PROBED], data.train.labels[:_PROBED])
    curves = analysis.linear_probes(model, batches(known), batches(data.test))
    return curves["linear probe"].tolist()


def gradient_profile(trained: Trained, data: Split) -> Metrics:
    """dg_fg: DG/FG by layer at the end of training; early_dg_fg: its mean over the lower half.
    gradient_norms: [epochs][layers]; early_gradient: the lower half's share of the norms of all
    layers, over all epochs."""
    batch = (data.images[:_GRADIENT_BATCH], data.labels[:_GRADIENT_BATCH])
    found = analysis.gradients(trained.model, batch)
    norms = torch.stack(trained.gradient_norms)
    half = norms.shape[1] // 2
    return {
        "dg_fg": found.ratio.tolist(),
        "early_dg_fg": found.ratio[:half].mean().item(),
        "gradient_norms": norms.tolist(),
        "early_gradient": (norms[:, :half].sum() / norms.sum()).item(),
    }


def under_noise(model, data: Prepared, seed: int) -> Metrics:
    """Accuracy under each level of the paper's Table 2, named "gaussian 0.1" and so on."""
    return {
        f"{noise} {level:g}": value
        for noise, curves in _noise(model, data, seed).items()
        for level, value in zip(curves.x, curves["accuracy"].tolist(), strict=True)
    }


def noisy_accuracy(model, data: Prepared, seed: int) -> float:
    """The mean of the accuracies under the levels of the paper's Table 2."""
    found = _noise(model, data, seed).values()
    return torch.cat([curves["accuracy"][1:] for curves in found]).mean().item()


def _noise(model, data: Prepared, seed: int) -> dict[str, analysis.Curves]:
    return analysis.noise_robustness(model, batches(data.pixels), data.prepare, seed=seed)


def to_reach(training: Training, trained: Trained, accuracy: float) -> Metrics:
    """Epochs and seconds of training until the test accuracy, watched in every epoch, was reached;
    None where it was not. What counts is the network that the training ends with: not one that
    has yet to grow, or whose alpha has yet to move."""
    reached = [
        epoch
        for epoch, got in enumerate(trained.test_accuracy, 1)
        if got >= accuracy and is_as_it_ends(training, epoch)
    ]
    epochs = min(reached, default=None)
    seconds = None if epochs is None else sum(trained.seconds[:epochs])
    return {"epochs_to_reach": epochs, "seconds_to_reach": seconds}


def is_as_it_ends(training: Training, epoch: int) -> bool:
    """Whether after so many epochs depth and alpha are those of the end."""
    epochs = training.recipe.epochs
    if epoch >= epochs:
        return True
    layers = len(build(training, classes=10, weights=False).blocks)
    progress = (epoch - 1e-9) / epochs  # the last step of an epoch is before the next one's first
    depth, alpha = training.depth, training.alpha
    of_layers = (layers,) if isinstance(alpha, BottomUpAlpha) else ()
    return (depth is None or depth.at(progress, layers) == depth.at(1.0, layers)) and (
        alpha is None or alpha.at(progress, *of_layers) == alpha.at(1.0, *of_layers)
    )


def training_flops(training: Training, samples: int) -> float:
    """Of all forward and backward passes, schedules followed from step to step; a backward pass
    counts two forward passes, less what is frozen. A teacher's forward passes count too."""
    model = build(training, classes=10, weights=False)
    layers, recipe = len(model.blocks), training.recipe
    steps = recipe.epochs * recipe.steps_per_epoch(samples)
    shares = [step / steps for step in range(steps)]
    depths = [training.depth.at(p, layers) if training.depth else layers for p in shares]
    frozen = [training.freeze.at(p, layers) if training.freeze else 0 for p in shares]
    wanted = sorted({layers, *depths, *({0, *frozen} if training.freeze else ())})
    forward = _forward_flops(training, model, wanted)
    passes = sum(
        count * (3 * forward[d] - (2 * (forward[f] - forward[0]) if f else 0))
        for (d, f), count in Counter(zip(depths, frozen, strict=True)).items()
    )
    if training.teacher is not None:
        teacher = build(training.teacher, classes=10, weights=False)
        taught = len(teacher.blocks)
        passes += steps * _forward_flops(training.teacher, teacher, [taught])[taught]
    return passes / max(steps, 1) * recipe.epochs * samples


def _forward_flops(training: Training, model: nn.Module, depths: list[int]) -> dict[int, int]:
    """Of one sample, by depth."""
    cost = analysis.costs(model, one_input(training, model), depths)
    return dict(zip(depths, cost.flops.tolist(), strict=True))


@torch.no_grad()
def mean_loss(model, data: Split) -> float:
    """Cross-entropy over all samples."""
    total = sum(
        F.cross_entropy(model(images), labels, reduction="sum") for images, labels in batches(data)
    )
    return total.item() / len(data.labels)
