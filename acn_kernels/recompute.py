"""Not keeping for the backward pass what is cheap to make again: norms and activations.

Whoever makes such a tensor offers the way to make it again; while a layer runs inside
:func:`recomputing`, autograd keeps that in place of the tensor. What an offered tensor is made
from is kept anyway, by its own derivative, so nothing more stays alive.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

_running = threading.local()


class _Offer(NamedTuple):
    tensor: weakref.ref[Tensor]
    again: Callable[[], Tensor]


class _Again(NamedTuple):
    """In the place of a tensor that autograd wanted to keep."""

    make: Callable[[], Tensor]
    shape: torch.Size


def offer(h: Tensor, again: Callable[[], Tensor]) -> Tensor:
    """h itself; inside :func:`recomputing`, ``again()`` stands in for it until the backward pass.

    ``again`` gives the same bits and refers to nothing that autograd would not keep without it.
    """
    offers = getattr(_running, "offers", None)
    if offers is not None and h.is_contiguous():
        offers[h.untyped_storage().data_ptr()] = _Offer(weakref.ref(h), again)
    return h


@contextlib.contextmanager
def recomputing() -> Iterator[None]:
    """Inside, tensors that are offered are not kept for the backward pass."""
    if torch.compiler.is_compiling():  # the compiler's own partitioner weighs this
        yield
        return
    offers: dict[int, _Offer] = {}

    def pack(kept: Tensor) -> Tensor | _Again:
        if type(kept) not in (Tensor, nn.Parameter):  # a sharded one has no memory to point at
            return kept
        found = offers.get(kept.untyped_storage().data_ptr())
        # Memory of an offered tensor that is gone may have become another's.
        h = None if found is None else found.tensor()
        if h is None or kept.numel() != h.numel() or kept.dtype != h.dtype:
            return kept
        return _Again(found.again, kept.shape) if kept.is_contiguous() else kept

    outer, _running.offers = getattr(_running, "offers", None), offers
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        _running.offers = outer


def _unpack(kept: Tensor | _Again) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    with torch.no_grad():
        return kept.make().view(kept.shape)
