"""The pre-norm transformer block, without the two adds: what remains between them is the ACN's."""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acn_kernels.blocks.mlp import Mlp
from acn_kernels.connection import Connection
from acn_kernels.hooks import is_plain_linear
from acn_kernels.rows import RowSelection


class KeyValueCache(Protocol):
    """Keys and values of earlier tokens: a Cache of transformers, or whatever does as it does."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keeps those of new tokens [B, heads, T, D / heads]; returns those of all tokens."""
        ...


class Attention(nn.Module):
    """Multi-head self-attention [B, T, D] to [B, T, D]; parameter names are timm's.

    Args:
        width: D. heads: a divisor of it. dropout: of the attention weights, in training.
        layer_idx: the layer's number in a key-value cache.
    """

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, layer_idx: int | None = None
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads is {heads}; it takes a divisor of the width {width}")
        self.heads = heads
        self.dropout = dropout
        self.layer_idx = layer_idx
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rows: RowSelection | None = None,
        past_key_values: KeyValueCache | None = None,
    ) -> Tensor:
        """With ``rows``, only these tokens ask: [B, R, D] of the R queries over all keys.

        ``past_key_values`` adds the keys of earlier tokens, and keeps those of x. PyTorch counts
        ``is_causal`` from the first key: behind earlier tokens it takes an ``attn_mask`` instead.

        Raises:
            ValueError: is_causal is True beside an attn_mask.
        """
        if is_causal and attn_mask is not None:
            raise ValueError("is_causal is True beside an attn_mask; attention takes one of them")
        if rows is None:
            q, k, v = self._heads(self.qkv(x), 3)
        else:
            q, k, v = self._few_queries(x, rows)
            attn_mask = _mask_of_rows(rows, x.shape[-2], attn_mask, is_causal)
            is_causal = False
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, count: int) -> list[Tensor]:
        """``count`` tensors [B, heads, T, D / heads] that lie beside each other in x."""
        # Split before the heads move: the other way round, the backward pass copies once more.
        split = x.unflatten(-1, (count, self.heads, -1)).unbind(2)
        return [part.transpose(1, 2) for part in split]

    def _few_queries(self, x: Tensor, rows: RowSelection) -> list[Tensor]:
        if not self._comes_apart():
            q, k, v = self._heads(self.qkv(x), 3)
            return [q.index_select(2, rows.index), k, v]
        queries = self._part(x.index_select(1, rows.index), slice(x.shape[-1]))
        return [*self._heads(queries, 1), *self.keys_values(x)]

    def keys_values(self, x: Tensor) -> list[Tensor]:
        """Keys and values [B, heads, T, D / heads] of x [B, T, D], without a query."""
        if not self._comes_apart():
            return self._heads(self.qkv(x), 3)[1:]
        return self._heads(self._part(x, slice(x.shape[-1], None)), 2)

    def _part(self, x: Tensor, columns: slice) -> Tensor:
        """Those columns of qkv(x) alone."""
        bias = self.qkv.bias
        return F.linear(x, self.qkv.weight[columns], None if bias is None else bias[columns])

    def _comes_apart(self) -> bool:
        """Whether qkv is a plain product, of which a part may be computed; else it is called."""
        return is_plain_linear(self.qkv)


def _mask_of_rows(
    rows: RowSelection, tokens: int, attn_mask: Tensor | None, is_causal: bool
) -> Tensor | None:
    """The chosen rows of a mask [..., T, T] or [..., 1, T], or of the causal one."""
    if is_causal:
        return rows.index[:, None] >= torch.arange(tokens, device=rows.index.device)
    if attn_mask is None or attn_mask.shape[-2] == 1:
        return attn_mask
    return attn_mask.index_select(-2, rows.index)


class TransformerBlock(nn.Module):
    """``h = attn(norm1(u))``, ``m = mlp(norm2(h + (1-alpha) u))``, output ``m + (1-alpha) h``.

    alpha = 1, also when called on its own: ``mlp(norm2(attn(norm1(x))))``, the block of the
    paper's ViT; alpha = 0: the residual block once the stack adds its output to y. Granularity
    "sublayer": attention and MLP are layers of their own.

    Args:
        width: D. heads: attention heads, a divisor of it. mlp_width: hidden width of the MLP,
        default 4 D. norm: class of the two norms, called with D. layer_idx: the block's number in
        a key-value cache. dropout: after attention and MLP. attention_dropout: of the attention
        weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int | None = None,
        norm: type[nn.Module] = nn.LayerNorm,
        layer_idx: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.attn = Attention(width, heads, attention_dropout, layer_idx)
        self.norm2 = norm(width)
        self.mlp = Mlp(width, 4 * width if mlp_width is None else mlp_width)
        self.dropout = dropout

    @property
    def entry_norms(self) -> tuple[nn.Module, nn.Module]:
        """The norms at the entries of attention and MLP."""
        return self.norm1, self.norm2

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        past_key_values: KeyValueCache | None = None,
        x_0: Tensor | None = None,
        connection: Connection | None = None,
    ) -> Tensor:
        """x [B, T, D] to the same shape.

        Args:
            attn_mask, is_causal: those of torch's scaled_dot_product_attention.
            past_key_values: see :class:`Attention`.
            x_0: [B, T, D], the network's input where every block reads it too, ``block(x + x_0)``.
        """
        connection = Connection.begin(connection)
        h = self.attention_input(x, connection, x_0)
        rows = connection.take_read_rows()
        h = self._dropped(self.attn(h, attn_mask, is_causal, rows, past_key_values))
        mlp = functools.partial(self._second_half, backend=connection.wiring.backend)
        if connection.sublayers:
            return mlp(connection.enter(h, self.norm2))
        return connection.within(h, self.norm2, mlp)

    def _second_half(self, h: Tensor, backend: str) -> Tensor:
        return self._dropped(self.mlp(h, backend))

    def _dropped(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training)

    def attention_input(
        self, x: Tensor, connection: Connection, x_0: Tensor | None = None
    ) -> Tensor:
        """What keys and values are made of: norm1(u), or norm1(u + x_0)."""
        if x_0 is None:
            return connection.enter(x, self.norm1)
        return connection.enter_with(x, x_0, self.norm1)
