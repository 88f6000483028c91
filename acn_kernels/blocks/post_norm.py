"""The post-norm transformer block of BERT, its adds left to the connection."""

from __future__ import annotations

from torch import Tensor, nn

from acn_kernels.blocks.mlp import Mlp
from acn_kernels.blocks.transformer import Attention
from acn_kernels.connection import Connection


class PostNormBlock(nn.Module):
    """``h = norm1(drop(attn(x)) + s x)``, output ``norm2(drop(mlp(h)) + s h)``.

    s is the share that the stack sends around the halves: 1 - alpha in a
    :class:`~acn_kernels.blocks.PostNormStack`, 0 (the block of the paper's AC-BERT) on its own and
    in a plain FusedACNStack.

    Args:
        width: D. heads: attention heads, a divisor of it. mlp_width: hidden width of the MLP,
        default 4 D.
        norm: class of the two norms, called with D.
        dropout: after attention and MLP. attention_dropout: of the attention weights.
    """

    # The norms close the halves: the stack enters both without one.
    entry_norms = (None, None)

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int | None = None,
        norm: type[nn.Module] = nn.LayerNorm,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attn = Attention(width, heads, attention_dropout)
        self.norm1 = norm(width)
        self.mlp = Mlp(width, 4 * width if mlp_width is None else mlp_width)
        self.norm2 = norm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, connection: Connection | None = None
    ) -> Tensor:
        """x [B, T, D] to the same shape; ``attn_mask`` is that of torch's SDPA."""
        connection = Connection.begin(connection)
        x = connection.enter(x, None)
        rows = connection.take_read_rows()
        h = self.dropout(self.attn(x, attn_mask, rows=rows))
        h = connection.wiring.norm(connection.leave(h), self.norm1)
        h = connection.next_sublayer(h)
        h = self.dropout(self.mlp(h, connection.wiring.backend))
        return connection.wiring.norm(connection.leave(h), self.norm2)
