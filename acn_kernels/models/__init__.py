"""Model families on FusedACNStack, their presets, and saving and loading them.

ACN BERT and ACN GPT are in :mod:`acn_kernels.models.huggingface`, which needs transformers.
"""

import importlib

from acn_kernels.models.base import ImageClassifier, ImageConfig, Model
from acn_kernels.models.mixer import Mixer, MixerConfig
from acn_kernels.models.presets import HUGGINGFACE_PRESETS, PRESETS, create
from acn_kernels.models.vit import ViT, ViTConfig

__all__ = [
    "HUGGINGFACE_PRESETS",
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


def __getattr__(name: str):
    if name == "huggingface":  # on first use: transformers is an extra
        return importlib.import_module("acn_kernels.models.huggingface")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
