"""Long and short connections together: what of x_i the sum leaves goes around the next layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from acn_kernels.connection import OMITTED, Scale, Wiring
from acn_kernels.reference import sum_dtype
from acn_kernels.stack import FusedACNStack


class HybridStack(FusedACNStack):
    """``x_i = f_i(x_{i-1}) + (1 - a_{i-1}) x_{i-1}``, ``y = sum a_i x_i``.

    The share a_i of a layer's output takes the long connection, the rest the short one around the
    next layer (around attention and MLP alike, where a layer is a block of both). All scales one:
    the ACN. Those below the last zero: the residual network. Takes the arguments of FusedACNStack,
    ``scales`` above all; alpha has no meaning here.
    """

    splits = True

    def _wiring(self, x) -> Wiring:
        return super()._wiring(x)._replace(alpha=1.0)


class PostNormStack(HybridStack):
    """Post-norm blocks (BERT): the hybrid whose scales are alpha below the last layer, one there.

    ``x_i = LN_i(f_i(x_{i-1}) + (1-alpha) x_{i-1})``, ``y = x_L + alpha sum_{i<L} x_i``. alpha = 0:
    the original; alpha = 1: the AC-BERT of arXiv 2506.09714. Takes the arguments of FusedACNStack
    but for ``scales`` and ``include_input``, which alpha decides here.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        norm: nn.Module | None = None,
        *,
        scales: None = None,
        include_input: bool = True,
        **options,
    ) -> None:
        if scales is not None:
            raise ValueError("scales is given; in a PostNormStack alpha is the scale of every term")
        if include_input is not True:
            raise ValueError("include_input is False; a PostNormStack sums alpha x_0 too")
        super().__init__(layers, norm, **options)

    def _scales_by_layer(self, depth: int) -> list[list[Scale]]:
        groups = super()._scales_by_layer(depth)
        if self._alpha == 1:
            return groups
        shares: Sequence[Scale] = [OMITTED] * depth
        if self.mix is not None:
            like = next(self.parameters(), self.mix)
            mix = self.mix.to(like.device, sum_dtype(like.dtype))
            shares = mix.expand(len(self)).unbind()[:depth]
        entered = zip(shares, groups, strict=False)
        return [[share] * len(group) for share, group in entered] + groups[-1:]
