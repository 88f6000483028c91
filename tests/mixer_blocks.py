"""Mixer blocks for the tests of whole stacks of them."""

from __future__ import annotations

import torch
from conftest import DEVICE
from torch import nn

from acn_kernels.blocks import MixerBlock

SMALL = {"tokens": 4, "width": 16, "hidden": (8, 16)}


def mixer(depth, tokens, width, hidden, closing=False, dtype=torch.float32) -> list[MixerBlock]:
    """Blocks with random parameters through which an error shrinks, however many there are."""
    blocks = [MixerBlock(tokens, width, *hidden, closing) for _ in range(depth)]
    for block in blocks:
        for name, parameter in block.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.6 * parameter.shape[1] ** -0.5)
            else:
                nn.init.normal_(parameter)
    return [block.to(DEVICE, dtype) for block in blocks]
