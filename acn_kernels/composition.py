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
        settings = list(map(vars, self._modules))
        named = [(x, name) for x in settings for name in x if name not in _OF_EVERY_MODULE]
        self._setters, self._names = [x for x, _ in named], [name for _, name in named]
        self._set = [x[name] for x, name in named]
        groups = ((m._parameters, m._buffers, m._modules) for m in self._modules)
        owners = list(chain.from_iterable(groups))
        self._owners = [owner for owner in owners if owner]
        self._held = list(chain.from_iterable(map(dict.values, self._owners)))
        hooks = list(chain.from_iterable(map(hooks_of, self._modules)))
        self._hooked = any(hooks)
        # What is empty has no values to compare, and has to stay so.
        self._dicts = [*settings, *hooks, *(owner for owner in owners if not owner)]
        self._sizes = list(map(len, self._dicts))
        self._ask = _extension.module() or _InPython
        tensors = [x for x in self._held if type(x) in (nn.Parameter, Tensor)]
        strided = [x for x in tensors if x.layout is torch.strided]
        # Only where there is memory does the extension ask for its address.
        there = all(x.device.type in ("cpu", "cuda") for x in strided)
        self._places = (self._ask if there else _InPython).Places(strided)

    def is_that_of(self, modules: Sequence[nn.Module]) -> bool:
        """Whether these are the modules, made of the same as ever; never so where hooks wait to
        see one of them called."""
        return (
            not self._hooked
            and all(map(is_, (*modules, _END), self._given))
            and self._ask.values_are(self._owners, self._held)
            and self._ask.types_are(self._modules, self._types)
            and self._ask.entries_are(self._setters, self._names, self._set)
            and self._ask.sizes_are(self._dicts, self._sizes)
            and self._places.hold()
        )


class _InPython:
    """What csrc/composition.h does, for where it has not been built."""

    @staticmethod
    def types_are(objects: list[object], types: list[type]) -> bool:
        return all(map(is_, map(type, objects), types))

    @staticmethod
    def sizes_are(dicts: list[dict], sizes: list[int]) -> bool:
        return list(map(len, dicts)) == sizes

    @staticmethod
    def values_are(dicts: list[dict], held: list[object]) -> bool:
        found = chain.from_iterable(map(dict.values, dicts))
        return all(map(is_, (*found, _END), (*held, _END)))

    @staticmethod
    def entries_are(dicts: list[dict], names: list[str], held: list[object]) -> bool:
        return all(map(is_, map(dict.get, dicts, names), held))

    class Places:
        def __init__(self, tensors: list[Tensor]) -> None:
            self._tensors, self._places = tensors, self._now(tensors)

        def hold(self) -> bool:
            return self._now(self._tensors) == self._places

        @staticmethod
        def _now(tensors: list[Tensor]) -> list[tuple[int, int]]:
            return list(zip(map(Tensor.data_ptr, tensors), map(Tensor.numel, tensors), strict=True))
