"""The feed-forward twin: the same blocks with neither short nor long connections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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

    def forward_intermediates(
        self, x: Tensor, *args, indices: Sequence[int] | None = None, **kwargs
    ) -> list[Tensor]:
        """norm(x_k) for every depth k in ``indices``; None is 0 .. L."""
        wanted = self._checked_depths(indices)
        wiring = self._wiring(x)
        outputs = {}
        for depth in range(max(wanted, default=0) + 1):
            if depth:
                x = self[depth - 1](x, *args, **kwargs)
            if depth in wanted:
                outputs[depth] = self._head_norm(self._selected(x, wiring), x)
        return [outputs[k] for k in wanted]
