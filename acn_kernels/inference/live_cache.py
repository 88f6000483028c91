"""A key-value cache for a batch of which some have left: state copying for the skipped layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from acn_kernels.blocks import KeyValueCache
from acn_kernels.stack import FusedACNStack


class State(NamedTuple):
    """Of some samples of the batch: their numbers [N], x_k [N, T, D], y as ``stack.advance`` keeps
    it, and the input x_0 where the blocks read it."""

    rows: Tensor
    x: Tensor
    y: Tensor | None
    x_0: Tensor | None

    def __getitem__(self, chosen: Tensor) -> State:
        return State(*(None if part is None else part[chosen] for part in self))

    def joined(self, other: State | None) -> State:
        """The samples of both."""
        if other is None:
            return self
        pairs = zip(self, other, strict=True)
        return State(*(None if one is None else torch.cat([one, two]) for one, two in pairs))


class LiveCache:
    """Lets the layers run on the samples still under way, and keeps the cache of the whole batch.

    A later token looks at every layer's keys of this one, also where this one left before that
    layer. There they are made of the x it left with, as if the layers between had passed it on:
    what CALM (arXiv 2207.07061) calls state copying. It takes the two products for key and value,
    and no attention and no MLP.

    Args:
        cache: of the whole batch. stack: the blocks of a language model. batch: B.
    """

    def __init__(self, cache: KeyValueCache, stack: FusedACNStack, batch: int) -> None:
        self._cache = cache
        self._stack = stack
        self._batch = batch
        self._live: Tensor | None = None
        self._gone: State | None = None

    def leave(self, leaving: State, live: Tensor) -> None:
        """From now on the layers run on the samples ``live`` [N] alone."""
        self._gone = leaving.joined(self._gone)
        self._live = live

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """As KeyValueCache says, of the live samples [N, heads, T, D / heads]."""
        if self._gone is None:
            return self._cache.update(keys, values, layer_idx)
        found = []
        for of_live, of_gone in zip((keys, values), self._copied(layer_idx), strict=True):
            every = of_live.new_empty(self._batch, *of_live.shape[1:])
            every[self._live] = of_live
            every[self._gone.rows] = of_gone
            found.append(every)
        return tuple(kept[self._live] for kept in self._cache.update(*found, layer_idx))

    def fill(self, start: int, stop: int) -> None:
        """Layers[start:stop], which nobody ran."""
        order = self._gone.rows.argsort()
        for i in range(start, stop):
            keys, values = (of_gone[order] for of_gone in self._copied(i))
            self._cache.update(keys, values, i)

    def _copied(self, i: int) -> list[Tensor]:
        _, x, y, x_0 = self._gone
        block = self._stack[i]
        h = block.attention_input(x, self._stack.reading(i, x, y), x_0)
        return block.attn.keys_values(h)
