"""MLP-Mixers as in the paper's CIFAR-10 experiments."""

from __future__ import annotations

import dataclasses

from acn_kernels.blocks import MixerBlock
from acn_kernels.models.base import ImageClassifier, ImageConfig


@dataclasses.dataclass(frozen=True)
class MixerConfig(ImageConfig):
    """token_mlp, channel_mlp: hidden widths. closing: the block's form in the authors' code, with
    a shortcut inside the layer; without it, the form of the paper's text."""

    token_mlp: int = 64
    channel_mlp: int = 512
    closing: bool = False


class Mixer(ImageClassifier, family="mixer"):
    """Mixer blocks over the patches, then the classifier of ImageClassifier."""

    config_class = MixerConfig

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(
            config,
            [
                MixerBlock(
                    config.tokens,
                    config.width,
                    config.token_mlp,
                    config.channel_mlp,
                    config.closing,
                )
                for _ in range(config.depth)
            ],
        )
