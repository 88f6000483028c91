"""Not keeping for the backward pass what is cheap to make again: norms and activations.

Whoever makes such a tensor offers the way to make it again; while a layer runs inside
:func:`recomputing`, autograd keeps that in place of the tensor. What an offered tensor is made
from is kept anyway, by its own derivative, so nothing more stays alive.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

_running = threading.local()


class _Kept:
    """A tensor, and its version: the count of its changes in place, which autograd looks at by
    itself only where no hook stands between."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._version = tensor, tensor._version

    def unchanged(self) -> Tensor:
        if self.tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a {self.tensor.dtype} {list(self.tensor.shape)} is at version "
                f"{self.tensor._version}; expected version {self._version} instead"
            )
        return self.tensor


class _Offer(NamedTuple):
    tensor: weakref.ref[Tensor]
    version: int
    again: Callable[[], Tensor]
    sources: list[_Kept]


class _Again(NamedTuple):
    """In the place of a tensor that autograd wanted to keep."""

    make: Callable[[], Tensor]
    sources: list[_Kept]
    shape: torch.Size


def offer(h: Tensor, again: Callable[..., Tensor], *sources: Tensor | None) -> Tensor:
    """h itself; inside :func:`recomputing`, ``again(*sources)`` stands in for it until the backward
    pass.

    It gives the same bits. Where no source takes a gradient, autograd would not keep them, and h
    is kept.
    """
    offers = getattr(_running, "offers", None)
    there = [source for source in sources if source is not None]
    if offers is not None and h.is_contiguous() and any(s.requires_grad for s in there):
        make = functools.partial(again, *sources)
        kept = list(map(_Kept, there))
        offers[h.untyped_storage().data_ptr()] = _Offer(weakref.ref(h), h._version, make, kept)
    return h


@contextlib.contextmanager
def recomputing() -> Iterator[None]:
    """Inside, tensors that are offered are not kept for the backward pass."""
    if torch.compiler.is_compiling():  # the compiler's own partitioner weighs this
        yield
        return
    offers: dict[int, _Offer] = {}

    def pack(kept: Tensor) -> Tensor | _Kept | _Again:
        if type(kept) not in (Tensor, nn.Parameter):  # a sharded one has no memory to point at
            return kept
        # Autograd gives back the graph of what it unpacks. Held here, the graph would hold itself,
        # by way of C++, where the collector of garbage does not look.
        found = offers.get(kept.untyped_storage().data_ptr())
        # Memory of an offered tensor that is gone may have become another's.
        h = None if found is None else found.tensor()
        if h is None or h._version != found.version or not kept.is_contiguous():
            return _Kept(kept.detach())
        if kept.numel() != h.numel() or kept.dtype != h.dtype:
            return _Kept(kept.detach())
        return _Again(found.again, found.sources, kept.shape)

    outer, _running.offers = getattr(_running, "offers", None), offers
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        _running.offers = outer
        offers.clear()  # pack is held by the graph, and so would be whatever they refer to


def _unpack(kept: Tensor | _Kept | _Again) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    if isinstance(kept, _Kept):
        return kept.unchanged()
    for source in kept.sources:
        source.unchanged()
    with torch.no_grad():
        return kept.make().view(kept.shape)
