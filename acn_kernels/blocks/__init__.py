"""Blocks without short connections of their own, made for FusedACNStack, and its other wirings."""

from acn_kernels.blocks.feedforward import FeedForwardStack
from acn_kernels.blocks.history import DenseFormerStack, DenseNetStack, HistoryStack
from acn_kernels.blocks.hybrid import HybridStack, PostNormStack
from acn_kernels.blocks.mixer import MixerBlock
from acn_kernels.blocks.mlp import Mlp
from acn_kernels.blocks.post_norm import PostNormBlock
from acn_kernels.blocks.transformer import Attention, KeyValueCache, TransformerBlock

__all__ = [
    "Attention",
    "DenseFormerStack",
    "DenseNetStack",
    "FeedForwardStack",
    "HistoryStack",
    "HybridStack",
    "KeyValueCache",
    "MixerBlock",
    "Mlp",
    "PostNormBlock",
    "PostNormStack",
    "TransformerBlock",
]
