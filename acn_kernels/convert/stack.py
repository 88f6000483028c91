"""A list of converted pre-norm blocks that its model calls as one: the fused stack."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from acn_kernels.convert.chain import Chain
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_granularity


class ConvertedStack(FusedACNStack):
    """Stands where an ``nn.Sequential`` of blocks stood; keys are unchanged.

    Called as one, it is a FusedACNStack with all its methods; a loop over its blocks computes the
    same, block by block. Both read alpha and granularity from the ``chain``.
    """

    def __init__(self, blocks: Sequence[nn.Module], chain: Chain) -> None:
        self.chain = chain
        super().__init__(blocks, alpha=chain.alpha, granularity=chain.granularity)

    @property
    def alpha(self) -> float:
        """1 is the ACN, 0 the residual network; a number in [0, 1]."""
        return self.chain.alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self.chain.alpha = alpha

    @property
    def _alpha(self) -> float:
        return self.chain.alpha

    @property
    def mix(self):
        return self.chain.mix

    @mix.setter
    def mix(self, mix):
        self.chain.mix = mix

    def _free_alpha(self) -> None:
        self.chain.free_alpha()

    @property
    def granularity(self) -> str:
        """ "block" or "sublayer": what counts as one layer of the equation."""
        return self.chain.granularity

    @granularity.setter
    def granularity(self, granularity: str) -> None:
        check_granularity(granularity, self)
        self.chain.granularity = granularity

    @property
    def _granularity(self) -> str:
        return self.chain.granularity

    def __getitem__(self, i: int | slice) -> nn.Module:
        """The block i, or a stack of the blocks in a slice, on the same chain."""
        if not isinstance(i, slice):
            return super().__getitem__(i)
        part = ConvertedStack(self._numbered()[i], self.chain)
        for option in ("rows", "direct_gradient_only", "checkpoint", "backend", "training"):
            setattr(part, option, getattr(self, option))
        return part
