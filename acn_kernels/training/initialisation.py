"""First weights for networks whose layers have no short connection to carry the signal."""

from __future__ import annotations

import torch
from torch import nn

from acn_kernels.blocks import Mlp

__all__ = ["dirac_", "scaled_"]


@torch.no_grad()
def dirac_(model: nn.Module) -> None:
    """Adds the identity to both weights of every MLP in ``model``, as far as it fits: a layer then
    hands on what it got, but for its activation function, before it has learned anything.

    The authors' ViT variant keeps such identities fixed beside the weights; here they are where the
    weights begin.

    Raises:
        ValueError: there is no :class:`acn_kernels.blocks.Mlp` in the model.
    """
    mlps = [module for module in model.modules() if isinstance(module, Mlp)]
    if not mlps:
        raise ValueError(f"model is a {type(model).__name__} without an MLP of acn_kernels.blocks")
    for mlp in mlps:
        for weight in (mlp.fc1.weight, mlp.fc2.weight):
            weight += torch.eye(*weight.shape, device=weight.device, dtype=weight.dtype)


@torch.no_grad()
def scaled_(blocks: nn.Module, gain: float = 1.0) -> None:
    """Draws the weights of all linear layers in ``blocks`` anew, normal with variance
    ``gain^2 / fan_in``, and sets their biases to zero.

    PyTorch's own have a third of that variance (gain 1): the outputs of an ACN's layers, which are
    summed as they are, then weigh little beside the input.

    Raises:
        ValueError: ``gain`` is not positive.
    """
    if not gain > 0:
        raise ValueError(f"gain is {gain}; it takes a positive number")
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
