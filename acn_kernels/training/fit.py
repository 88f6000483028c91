"""Training several classifiers side by side: same batches, same budget, each one timed."""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from acn_kernels.training.digits import Split
from acn_kernels.training.schedules import warmup_cosine


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
    per_epoch = math.ceil(len(data.labels) / batch_size)
    total = epochs * per_epoch
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay, fused=True)
        for name, model in models.items()
    }
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, per_epoch, total)
        )
        for optimizer in optimizers.values()
    ]
    seconds = dict.fromkeys(models, 0.0)
    bar = tqdm(total=total, disable=not progress, desc="training", leave=False)
    for model in models.values():
        model.train()
    for _ in range(epochs):
        order = torch.randperm(len(data.labels), generator=generator)
        for batch in order.to(data.labels.device).split(batch_size):
            losses = {}
            for name, model in models.items():
                started = time.perf_counter()
                loss = F.cross_entropy(model(data.images[batch]), data.labels[batch])
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
                losses[name] = f"{loss.item():.3f}"  # also waits for the device
                seconds[name] += time.perf_counter() - started
            for schedule in schedules:
                schedule.step()
            bar.set_postfix(losses, refresh=False)
            bar.update()
    bar.close()
    return seconds
