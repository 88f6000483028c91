"""The feed-forward twin: the same blocks with neither short nor long connections."""

from __future__ import annotations

from torch import Tensor

from acn_kernels.connection import Connection, Wiring
from acn_kernels.stack import FusedACNStack


class FeedForwardStack(FusedACNStack):
    """``x_i = f_i(x_{i-1})``, output norm(x_L): the baseline of the paper's Fig. 1.

    Sub-network k reads x_k. Takes the arguments of FusedACNStack; those that speak of the sum
    have no meaning here.
    """

    def forward(self, x: Tensor, *args, depth: int | None = None, **kwargs) -> Tensor:
        """norm(x_depth), of x's shape (or its selected rows)."""
        depth = len(self) if depth is None else depth
        return self.forward_intermediates(x, *args, indices=[depth], **kwargs)[0]

    def output(self, x: Tensor, y: Tensor | None, depth: int) -> Tensor:
        """norm(x_depth): there is no sum."""
        return self._head_norm(self._wiring(x).selected(x), x)

    def _connection_kind(self, wiring: Wiring) -> type[Connection]:
        return Connection
