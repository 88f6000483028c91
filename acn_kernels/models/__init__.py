"""Model families on FusedACNStack, their presets, and saving and loading them."""

from acn_kernels.models.base import ImageClassifier, ImageConfig, Model
from acn_kernels.models.mixer import Mixer, MixerConfig
from acn_kernels.models.presets import PRESETS, create
from acn_kernels.models.vit import ViT, ViTConfig

__all__ = [
    "PRESETS",
    "ImageClassifier",
    "ImageConfig",
    "Mixer",
    "MixerConfig",
    "Model",
    "ViT",
    "ViTConfig",
    "create",
]
