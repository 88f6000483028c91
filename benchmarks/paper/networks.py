"""The untrained network that a Training names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acn_kernels.models import create
from benchmarks.paper.spec import Training
from benchmarks.paper.text_models import BERT, MINILM, create_text


def build(training: Training, classes: int, weights: bool = True) -> nn.Module:
    """weights: False leaves out those that are read from a file, where only sizes count."""
    changes = dict(training.changes)
    if training.model in (BERT, MINILM):
        return create_text(training.model, classes, weights, **changes)
    return create(training.model, **{**changes, "classes": classes})


def one_input(training: Training, model: nn.Module) -> Tensor:
    """A sample of the shape that the network takes, without content."""
    if training.data.tokens:
        return torch.ones(1, training.data.tokens, dtype=torch.long)
    size = model.config.image_size
    return torch.zeros(1, model.config.channels, size, size)
