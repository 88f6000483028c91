"""ViTs and Mixers in the C++ engine: which it runs, and what it takes of them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from acn_kernels.blocks import Attention, MixerBlock, Mlp, TransformerBlock
from acn_kernels.inference.engine_modules import obstacle_in_modules, obstacle_in_tensors
from acn_kernels.models import Mixer, ViT
from acn_kernels.models.vit import sincos_2d
from acn_kernels.stack import FusedACNStack

_EPS = 1e-5
_MODULES = {
    Attention, FusedACNStack, Mixer, MixerBlock, Mlp, TransformerBlock, ViT,
    nn.Conv2d, nn.GELU, nn.LayerNorm, nn.Linear,
}  # fmt: skip


def image_config(model: ViT | Mixer) -> dict:
    """The configuration of ``model`` as the engine reads it."""
    fields = dataclasses.asdict(model.config)
    return {"family": model.family, **fields, "alpha": model.blocks.alpha}


def obstacle_in_images(model: ViT | Mixer) -> str | None:
    """Why the engine does not run ``model``; None where it does."""
    obstacle = _obstacle_in_options(model) or obstacle_in_modules(model, _MODULES, _EPS)
    return obstacle or _obstacle_in_tensors(model) or _obstacle_in_positions(model)


def _obstacle_in_options(model: ViT | Mixer) -> str | None:
    """The same of its options, modules and tensors aside."""
    stack = model.blocks
    rows = "first" if getattr(model.config, "pool", None) == "first" else None
    plain = (
        type(stack) is FusedACNStack
        and isinstance(stack.alpha, float)
        and stack.scales is None
        and stack.include_input
        and stack.granularity == "block"
        and (stack.rows is None if rows is None else stack.rows == rows)
    )
    if not plain:
        return "the wiring is not plain: one alpha, no scales, blocks as layers"
    if model.pooled_head is None:
        return "the head is no plain Linear layer behind the mean of the rows"
    if stack.alpha != 1 and next(model.parameters()).is_cuda:
        return f"alpha is {stack.alpha}; on a GPU it takes 1"
    if model.config.depth != len(stack):
        return f"the configuration has {model.config.depth} layers, the stack {len(stack)}"
    return None


def _obstacle_in_tensors(model: ViT | Mixer) -> str | None:
    with torch.device("meta"):
        twin = type(model)(model.config)
    expected = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    tensors = model.state_dict(keep_vars=True)
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        return "its tensors are not those that its configuration makes"
    return obstacle_in_tensors(tensors.items())


def _obstacle_in_positions(model: ViT | Mixer) -> str | None:
    if type(model) is Mixer:
        return None
    config = model.config
    own = sincos_2d(config.image_size // config.patch_size, config.width)
    same = torch.equal(model.positions, own.to(model.positions))
    return None if same else "the positions are not the sines and cosines that it computes"
