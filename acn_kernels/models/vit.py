"""Vision transformers as in the paper: a simple ViT without its residual adds."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from acn_kernels.blocks import TransformerBlock
from acn_kernels.models.base import ImageClassifier, ImageConfig


@dataclasses.dataclass(frozen=True)
class ViTConfig(ImageConfig):
    """heads: attention heads. mlp_width: hidden width. pool: "mean" of the tokens, or "first":
    a class token, the only row of the sum that is ever computed."""

    heads: int = 3
    mlp_width: int = 768
    pool: str = "mean"


class ViT(ImageClassifier, family="vit"):
    """Fixed sine-cosine positions in two dimensions, then the classifier of ImageClassifier."""

    config_class = ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        if config.pool not in ("mean", "first"):
            raise ValueError(f"pool is {config.pool!r}; it takes 'mean' or 'first'")
        super().__init__(
            config,
            [
                TransformerBlock(config.width, config.heads, config.mlp_width)
                for _ in range(config.depth)
            ],
        )
        side = config.image_size // config.patch_size
        self.register_buffer("positions", sincos_2d(side, config.width), persistent=False)
        self.cls_token = None
        self.num_prefix_tokens = int(config.pool == "first")
        if config.pool == "first":
            self.cls_token = nn.Parameter(torch.randn(config.width) * 0.02)
            self.blocks.rows = "first"

    def embed(self, images: Tensor) -> Tensor:
        x = super().embed(images)
        x = x + self.positions.to(x.dtype)  # FSDP's mixed precision leaves buffers as they are
        if self.cls_token is None:
            return x
        return torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x], dim=1)


def sincos_2d(side: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """Positions [side * side, width]: sines and cosines of both coordinates, a quarter each.

    From Beyer et al., arXiv 2205.01580.
    """
    if width % 4:
        raise ValueError(f"width is {width}; two-dimensional positions take a multiple of 4")
    steps = max(width // 4 - 1, 1)
    omega = torch.exp(torch.arange(width // 4) * (-math.log(temperature) / steps))
    y, x = (
        place.flatten()[:, None] * omega
        for place in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    )
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
