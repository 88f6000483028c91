"""Noise robustness, as in the paper's Table 2: accuracy on images that noise has been added to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from acn_kernels.analysis.results import Curves
from acn_kernels.analysis.subnetworks import Batches
from acn_kernels.inference.probe import right
from acn_kernels.models import ImageClassifier
from acn_kernels.modes import in_eval_mode
from acn_kernels.validation import check_labels

# The levels of the paper's Table 2.
SIGMAS = (0.1, 0.2, 0.4)
SHARES = (0.01, 0.05, 0.1)


def gaussian(images: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """images [B, C, H, W] in [0, 1] plus normal noise of deviation ``sigma``, clipped to [0, 1]."""
    _check(images, "sigma", sigma, torch.inf)
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return (images + sigma * noise.to(images.device)).clamp(0, 1)


def salt_and_pepper(images: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """images [B, C, H, W] in [0, 1], each pixel black with probability p/2 and white with p/2,
    all its channels alike."""
    _check(images, "p", p, 1)
    chance = torch.rand(len(images), 1, *images.shape[2:], generator=generator)
    chance = chance.to(images.device)
    noisy = torch.where(chance < p / 2, 0.0, images)
    return torch.where(chance > 1 - p / 2, 1.0, noisy).to(images.dtype)


@torch.no_grad()
def noise_robustness(
    model: ImageClassifier,
    data: Batches,
    prepare: Callable[[Tensor], Tensor],
    sigmas: Sequence[float] = SIGMAS,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> dict[str, Curves]:
    """Accuracy under each noise by its level, level 0 being the clean images.

    Args:
        data: batches (images in [0, 1], labels).
        prepare: what the network was trained behind, for instance standardising; gets noisy
            images in [0, 1].
        seed: of the noise; equal seeds give equal noise to every model.

    Returns:
        Curves "accuracy" by sigma ("gaussian") and by p ("salt and pepper").
    """
    batches = list(data)
    if not batches:
        raise ValueError("data is empty; it takes at least one batch (images, labels)")
    with in_eval_mode(model):
        return {
            name: Curves(
                f"accuracy under {name} noise", label, (0.0, *levels), "share right",
                {"accuracy": torch.stack([
                    _accuracy(model, batches, add, level, prepare, seed) for level in (0.0, *levels)
                ])},
            )
            for name, label, levels, add in (
                ("gaussian", "sigma", sigmas, gaussian),
                ("salt and pepper", "p", shares, salt_and_pepper),
            )
        }  # fmt: skip


def _accuracy(model, batches, add, level, prepare, seed) -> Tensor:
    generator, found, count = torch.Generator().manual_seed(seed), 0, 0
    for images, labels in batches:
        noisy = add(images, level, generator) if level else images
        logits = model(prepare(noisy))
        if len(images):
            check_labels(labels, logits.shape[-1], len(images))
        found += right(logits, labels).sum().item()
        count += len(labels)
    if not count:
        raise ValueError("data holds no sample; it takes at least one")
    return torch.tensor(found / count, dtype=torch.float64)


def _check(images: Tensor, name: str, value: float, most: float) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {value}; it takes a number from 0 to {most}")
    if not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}; they take floating point, from 0 to 1")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images go from {images.min():g} to {images.max():g}; they take 0 to 1, before they "
            "are standardised"
        )
