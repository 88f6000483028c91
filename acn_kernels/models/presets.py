"""Named model sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from acn_kernels.models.base import ImageConfig, Model
from acn_kernels.models.mixer import MixerConfig
from acn_kernels.models.vit import ViTConfig

_CIFAR = {"image_size": 32, "classes": 10}
_DIGITS = {"image_size": 8, "channels": 1, "classes": 10}

PRESETS: dict[str, ImageConfig] = {
    "acn_vit_tiny_patch16_224": ViTConfig(width=192, heads=3, mlp_width=768),
    "acn_vit_small_patch16_224": ViTConfig(width=384, heads=6, mlp_width=1536),
    "acn_vit_base_patch16_224": ViTConfig(width=768, heads=12, mlp_width=3072),
    "acn_vit_tiny_patch4_cifar": ViTConfig(**_CIFAR, patch_size=4, width=192, mlp_width=768),
    "acn_vit_digits": ViTConfig(**_DIGITS, patch_size=2, width=64, depth=8, heads=4, mlp_width=128),
    "acn_mixer_small_patch16_224": MixerConfig(width=512, depth=8, token_mlp=256, channel_mlp=2048),
    "acn_mixer_base_patch16_224": MixerConfig(width=768, depth=12, token_mlp=384, channel_mlp=3072),
    # Fig. 1-2 of the paper.
    "acn_mixer_patch4_cifar": MixerConfig(**_CIFAR, patch_size=4, width=128, depth=16),
    "acn_mixer_digits": MixerConfig(
        **_DIGITS, patch_size=2, width=64, depth=8, token_mlp=32, channel_mlp=128
    ),
}

# A class of acn_kernels.models.huggingface, and what differs from its configuration's defaults.
HUGGINGFACE_PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "acn_bert_base": ("ACNBertForMaskedLM", {}),
    "acn_gpt_small": ("ACNGPTForCausalLM", {}),
    # 9 layers, 512 wide, with learned scales; the vocabulary is rounded up to a multiple of 128.
    "acn_gpt_9x512": (
        "ACNGPTForCausalLM",
        {
            "vocab_size": 50304, "hidden_size": 512, "num_hidden_layers": 9,
            "num_attention_heads": 8, "norm": "rmsnorm", "granularity": "sublayer",
            "learned_scales": True,
        },
    ),
}  # fmt: skip


def create(name: str, **changes) -> Model | nn.Module:
    """A new model of the preset ``name``, with the named fields of its configuration changed.

    ``create("acn_vit_tiny_patch16_224", classes=10, wiring="residual")`` is the residual twin. The
    language models are Hugging Face models, whose fields have the names that transformers gives
    them: ``create("acn_gpt_small", num_hidden_layers=6)``.

    Raises:
        ValueError: the name or a field is unknown; the message lists those there are.
        ImportError: a language model is asked for, and transformers is not installed.
    """
    if name in HUGGINGFACE_PRESETS:
        return _create_huggingface(name, changes)
    if name not in PRESETS:
        names = ", ".join([*PRESETS, *HUGGINGFACE_PRESETS])
        raise ValueError(f"name is {name!r}; it takes one of {names}")
    config = PRESETS[name]
    fields = {field.name for field in dataclasses.fields(config)}
    unknown = ", ".join(sorted(set(changes) - fields))
    if unknown:
        raise ValueError(f"{name} has no {unknown}; it takes {', '.join(sorted(fields))}")
    config = dataclasses.replace(config, **changes)
    family = next(cls for cls in Model.families.values() if cls.config_class is type(config))
    return family(config)


def _create_huggingface(name: str, changes: dict[str, Any]) -> nn.Module:
    from acn_kernels.models import huggingface

    class_name, fields = HUGGINGFACE_PRESETS[name]
    model = getattr(huggingface, class_name)
    known = model.config_class().to_dict()
    unknown = ", ".join(sorted(set(changes) - set(known)))
    if unknown:
        raise ValueError(f"{name} has no {unknown}; it takes {', '.join(sorted(known))}")
    return model(model.config_class(**{**fields, **changes}))
