"""The MLP-Mixer block, without the two adds."""

from __future__ import annotations

import functools

from torch import Tensor, nn

from acn_kernels.blocks.mlp import Mlp
from acn_kernels.connection import Connection


class MixerBlock(nn.Module):
    """Token MLP then channel MLP, each behind its norm; wired like a transformer block.

    Args:
        tokens: T. width: D. token_mlp, channel_mlp: hidden widths of the two MLPs.
        closing: adds the last step of the authors' code, a shortcut *inside* the layer behind a
            non-linearity: ``out = norm3(relu(linear(x_i) + u))``. The paper's text has none.
            Such a block is one layer under either granularity.
        norm: class of the norms, called with D.
    """

    whole_stack = "mixer"  # the kernels that run stacks of it; a subclass has to say so itself

    def __init__(
        self,
        tokens: int,
        width: int,
        token_mlp: int,
        channel_mlp: int,
        closing: bool = False,
        norm: type[nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.token_mlp = Mlp(tokens, token_mlp)
        self.norm2 = norm(width)
        self.channel_mlp = Mlp(width, channel_mlp)
        self.closing = nn.Linear(width, width) if closing else None
        self.norm3 = norm(width) if closing else None

    @property
    def entry_norms(self) -> tuple[nn.Module, ...]:
        """The norms at the entries of the layers that the block consists of."""
        return (self.norm1, self.norm2) if self.closing is None else (self.norm1,)

    def forward(self, x: Tensor, connection: Connection | None = None) -> Tensor:
        """x [B, T, D] to the same shape."""
        connection = Connection.begin(connection)
        backend = connection.wiring.backend
        h = connection.enter(x, self.norm1).transpose(-1, -2)
        h = self.token_mlp(h, backend).transpose(-1, -2)
        if self.closing is None:
            # Beyond this point no token reads another.
            rows = connection.take_read_rows()
            h = h if rows is None else h.index_select(-2, rows.index)
        if self.closing is None and connection.sublayers:
            return self.channel_mlp(connection.enter(h, self.norm2), backend)
        channel_mlp = functools.partial(self.channel_mlp, backend=backend)
        out = connection.within(h, self.norm2, channel_mlp)
        if self.closing is None:
            return out
        around = connection.detached(connection.u)
        return connection.wiring.norm((self.closing(out) + around).relu(), self.norm3)
