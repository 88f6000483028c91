"""Training several classifiers side by side: same batches, same budget, each one timed."""

from __future__ import annotations

import time

import torch
from torch import nn
from tqdm import tqdm

from acn_kernels.training.digits import Split
from acn_kernels.training.trainer import Recipe, Trainer


def fit_side_by_side(
    models: dict[str, nn.Module],
    data: Split,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Trains each model on the same batches in turn: AdamW, warm-up over an epoch, then cosine.

    Returns:
        Seconds of training for each name, measured step by step.
    """
    generator = torch.Generator().manual_seed(seed)
    recipe = Recipe(epochs, batch_size, lr, weight_decay, seed=seed)
    trainers = {name: Trainer(model, recipe, len(data.labels)) for name, model in models.items()}
    seconds = dict.fromkeys(models, 0.0)
    total = epochs * recipe.steps_per_epoch(len(data.labels))
    bar = tqdm(total=total, disable=not progress, desc="training", leave=False)
    for _ in range(epochs):
        order = torch.randperm(len(data.labels), generator=generator)
        for batch in order.to(data.labels.device).split(batch_size):
            losses = {}
            for name, trainer in trainers.items():
                started = time.perf_counter()
                loss = trainer.train_on(data.images[batch], data.labels[batch])
                losses[name] = f"{loss.item():.3f}"  # also waits for the device
                seconds[name] += time.perf_counter() - started
            bar.set_postfix(losses, refresh=False)
            bar.update()
    bar.close()
    return seconds
