"""Named model sizes."""

from __future__ import annotations

import dataclasses

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


def create(name: str, **changes) -> Model:
    """A new model of the preset ``name``, with the named fields of its configuration changed.

    ``create("acn_vit_tiny_patch16_224", classes=10, wiring="residual")`` is the residual twin.

    Raises:
        ValueError: the name or a field is unknown; the message lists those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"name is {name!r}; it takes one of {', '.join(PRESETS)}")
    config = PRESETS[name]
    fields = {field.name for field in dataclasses.fields(config)}
    unknown = ", ".join(sorted(set(changes) - fields))
    if unknown:
        raise ValueError(f"{name} has no {unknown}; it takes {', '.join(sorted(fields))}")
    config = dataclasses.replace(config, **changes)
    family = next(cls for cls in Model.families.values() if cls.config_class is type(config))
    return family(config)
