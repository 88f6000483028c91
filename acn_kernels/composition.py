"""What modules are made of, and whether they still are: for what was found out about them once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import is_

import torch
from torch import Tensor, nn

from acn_kernels import _extension
from acn_kernels.hooks import hooks_of

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # among them ``training``
_END = object()


class Composition:
    """Everything that ``modules`` are and hold, down to the last: classes, children, parameters,
    buffers, settings such as ``eps``, and where tensors have their numbers.

    Two things it leaves aside: the numbers themselves, and ``training``. All is kept in columns,
    which C walks through at every question faster than a loop would.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._given = [*modules, _END]
        self._modules = list(dict.fromkeys(chain.from_iterable(m.modules() for m in modules)))
        self._types = list(map(type, self._modules))
        self._settings = list(map(vars, self._modules))
        self._lengths = list(map(len, self._settings))
        named = [(x, name) for x in self._settings for name in x if name not in _OF_EVERY_MODULE]
        self._setters, self._names = [x for x, _ in named], [name for _, name in named]
        self._set = [x[name] for x, name in named]
        groups = ((m._parameters, m._buffers, m._modules) for m in self._modules)
        owners = list(chain.from_iterable(groups))
        self._owners = [owner for owner in owners if owner]
        self._held = [*self._all_held(), _END]
        hooks = chain.from_iterable(map(hooks_of, self._modules))
        self._empty = [*hooks, *(owner for owner in owners if not owner)]  # and has to stay so
        self._places = _Places([x for x in self._held if type(x) in (nn.Parameter, Tensor)])

    def is_that_of(self, modules: Sequence[nn.Module]) -> bool:
        """Whether these are the modules, made of the same as ever; never so where hooks wait to
        see one of them called."""
        return (
            all(map(is_, (*modules, _END), self._given))
            and all(map(is_, (*self._all_held(), _END), self._held))
            and all(map(is_, map(type, self._modules), self._types))
            and list(map(len, self._settings)) == self._lengths
            and all(map(is_, map(dict.get, self._setters, self._names), self._set))
            and not any(self._empty)
            and self._places.hold()
        )

    def _all_held(self) -> chain:
        return chain.from_iterable(map(dict.values, self._owners))


class _Places:
    """Where tensors had their numbers, and how many, when they were listed."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [x for x in tensors if x.layout is torch.strided]
        self._counts = list(map(Tensor.numel, self._tensors))
        native = _extension.module()
        # Only where there is memory does the extension ask for its address.
        there = all(x.device.type in ("cpu", "cuda") for x in self._tensors)
        self._native = native.Places(self._tensors) if native is not None and there else None
        self._pointers = list(map(Tensor.data_ptr, self._tensors)) if self._native is None else []

    def hold(self) -> bool:
        if list(map(Tensor.numel, self._tensors)) != self._counts:
            return False
        if self._native is not None:
            return self._native.hold()
        return list(map(Tensor.data_ptr, self._tensors)) == self._pointers
