"""Which terms the long sum of a stack has, and which scale belongs to each."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from acn_kernels.connection import OMITTED, Scale
from acn_kernels.layer_list import LayerList
from acn_kernels.scales import check_scales


class ScaledTerms(LayerList):
    """The input and the layers' outputs, in their order; under granularity "sublayer" every
    attention and MLP is a term."""

    include_input: bool
    scales: Tensor | None  # one entry for each term
    _granularity = "block"  # until __init__ has the layers in place

    def _terms_of(self, layer: nn.Module) -> int:
        return len(layer.entry_norms) if self._granularity == "sublayer" else 1

    def _term_count(self) -> int:
        return self.include_input + sum(self._terms_of(layer) for layer in self)

    def _scales_by_layer(self, depth: int) -> list[list[Scale]]:
        """For each of the first ``depth`` layers the scales of the terms that enter there, and in
        the last place that of x_depth."""
        counts = [1] * depth
        if self._granularity == "sublayer":
            counts = [self._terms_of(layer) for layer in self._numbered()[:depth]]
        if self.scales is None:
            flat: list[Scale] = [None] * (sum(counts) + 1)
            if not self.include_input:
                flat[0] = OMITTED
        else:
            check_scales(self.scales, self._term_count())
            omitted = [] if self.include_input else [OMITTED]
            flat = [*omitted, *self.scales.unbind()]
        groups, at = [], 0
        for count in (*counts, 1):
            groups.append(flat[at : at + count])
            at += count
        return groups

    def _last_scale(self, depth: int) -> Scale:
        """The scale of x_depth."""
        if self.scales is None:
            return None if depth or self.include_input else OMITTED
        return self._scales_by_layer(depth)[-1][0]

    def _scales_of(self, kept: range) -> Tensor | None:
        """The scales of the input and of the kept layers; a prefix shares memory with ours."""
        if self.scales is None:
            return None
        ends = list(itertools.accumulate(map(self._terms_of, self), initial=self.include_input))
        if kept == range(len(kept)):
            scales = self.scales.detach()[: ends[len(kept)]]
        else:
            chosen = [t for k in kept for t in range(ends[k], ends[k + 1])]
            scales = self.scales.detach()[[*range(self.include_input), *chosen]]
        learned = isinstance(self.scales, nn.Parameter)
        return nn.Parameter(scales, self.scales.requires_grad) if learned else scales
