"""The feed-forward twin: the same blocks with neither short nor long connections."""

from __future__ import annotations

from torch import Tensor

from acn_kernels.connection import Connection, Wiring
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_depth


class FeedForwardStack(FusedACNStack):
    """``x_i = f_i(x_{i-1})``, output norm(x_L): the baseline of the paper's Fig. 1.

    Sub-network k reads x_k. Takes the arguments of FusedACNStack; those that speak of the sum
    have no meaning here.
    """

    def forward(self, x: Tensor, *args, depth: int | None = None, **kwargs) -> Tensor:
        """norm(x_depth), of x's shape (or its selected rows)."""
        depth = check_depth(depth, len(self), self.include_input)
        return self.finish(x, None, *args, stop=depth, **kwargs)

    def _finish(self, x, y, start, stop, wiring, args, kwargs) -> Tensor:
        x, y, wiring = self._advance(x, y, start, stop, wiring, args, kwargs, closing=True)
        return self._output(x, y, stop, wiring)

    def _sum(self, x, y, depth, wiring) -> Tensor:
        """x_depth: there is no sum."""
        return wiring.selected(x)

    def _wiring(self, x: Tensor) -> Wiring:
        return super()._wiring(x)._replace(alpha=1.0, detach=False)

    def connection_kind(self, wiring: Wiring) -> type[Connection]:
        return Connection
