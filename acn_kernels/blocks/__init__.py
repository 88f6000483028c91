"""Blocks without short connections of their own, made for FusedACNStack."""

from acn_kernels.blocks.feedforward import FeedForwardStack
from acn_kernels.blocks.mixer import MixerBlock
from acn_kernels.blocks.mlp import Mlp
from acn_kernels.blocks.transformer import Attention, TransformerBlock

__all__ = ["Attention", "FeedForwardStack", "MixerBlock", "Mlp", "TransformerBlock"]
