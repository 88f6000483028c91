"""The pre-norm transformer block, without the two adds: what remains between them is the ACN's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from acn_kernels.blocks.mlp import Mlp
from acn_kernels.connection import Connection


class Attention(nn.Module):
    """Multi-head self-attention [B, T, D] to [B, T, D]; parameter names are timm's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads is {heads}; it takes a divisor of the width {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)
        return self.proj(out.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """``h = attn(norm1(u))``, ``m = mlp(norm2(h + (1-alpha) u))``, output ``m + (1-alpha) h``.

    alpha = 1, also when called on its own: ``mlp(norm2(attn(norm1(x))))``, the block of the
    paper's ViT; alpha = 0: the residual block once the stack adds its output to y. Granularity
    "sublayer": attention and MLP are layers of their own.

    Args:
        width: D. heads: attention heads, a divisor of it. mlp_width: hidden width of the MLP,
            default 4 D. norm: class of the two norms, called with D.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int | None = None,
        norm: type[nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.attn = Attention(width, heads)
        self.norm2 = norm(width)
        self.mlp = Mlp(width, mlp_width or 4 * width)

    @property
    def entry_norms(self) -> tuple[nn.Module, nn.Module]:
        """The norms at the entries of attention and MLP."""
        return self.norm1, self.norm2

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        connection: Connection | None = None,
    ) -> Tensor:
        """x [B, T, D] to the same shape; the attention arguments are those of torch's SDPA."""
        connection = connection or Connection()
        h = self.attn(connection.enter(x, self.norm1), attn_mask, is_causal)
        if connection.sublayers:
            return self.mlp(connection.enter(h, self.norm2))
        return connection.within(h, self.norm2, self.mlp)
