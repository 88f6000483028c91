"""A converted block: the module it was, submodules and name included, with another forward."""

from __future__ import annotations

import functools
import inspect
from typing import ClassVar

from torch import Tensor, nn

from acn_kernels.connection import Connection
from acn_kernels.convert.adapters import Adapter, PostNorm, PreNorm
from acn_kernels.convert.chain import Chain, State, state_of
from acn_kernels.convert.registry import adapter_of


class Converted(nn.Module):
    """Mixed into the class of a module by :func:`converted_class`; copies and pickles by way of the
    class that the module had."""

    _acn_mixin: ClassVar[type[Converted]]
    _acn_original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol):
        _, (_, *rest), *state = super().__reduce_ex__(max(2, protocol))
        return _blank, (self._acn_mixin, self._acn_original, *rest), *state


class ConvertedBlock(Converted):
    """Reads and writes the long sum: in a :class:`ConvertedStack` through its connection, in any
    other loop through the tensor that flows."""

    _acn_adapter: ClassVar
    _acn_input: ClassVar[str]  # the name of forward's first argument
    _acn_chain: Chain
    _acn_first: bool

    @property
    def acn_adapter(self) -> Adapter:
        found = self._acn_adapter
        return found if isinstance(found, (PreNorm, PostNorm)) else found(self)

    @property
    def entry_norms(self) -> tuple[nn.Module | None, ...]:
        """The norms at the entries of a pre-norm block's sublayers."""
        if not isinstance(self.acn_adapter, PreNorm):
            raise AttributeError(f"a post-norm {type(self).__name__} has no entry norms")
        return tuple(self.acn_adapter.norms_of(self))

    def _apply(self, *args, **kwargs) -> ConvertedBlock:
        self._acn_chain.free_alpha()
        return super()._apply(*args, **kwargs)

    def __call__(self, *args, **kwargs) -> Tensor:
        # Hooks, sharding and recomputation may hand forward another tensor in the place of the one
        # that flows; what rides on it goes ahead as an argument.
        if "connection" not in kwargs and not self._acn_chain.is_residual:
            flowing = args[0] if args else kwargs[self._acn_input]
            kwargs["acn_state"] = state_of(flowing, self._acn_chain, self._acn_first)
        return super().__call__(*args, **kwargs)

    def forward(
        self,
        *args,
        connection: Connection | None = None,
        acn_state: State | None = None,
        **kwargs,
    ) -> Tensor:
        if connection is None and self._acn_chain.is_residual:
            return super().forward(*args, **kwargs)
        x, args = (args[0], args[1:]) if args else (kwargs.pop(self._acn_input), args)
        if connection is not None:
            return self.acn_adapter.layer(self, x, Connection.begin(connection), args, kwargs)
        state = acn_state or state_of(x, self._acn_chain, self._acn_first)
        return self.acn_adapter.step(self, x, state, args, kwargs)

    def extra_repr(self) -> str:
        chain = self._acn_chain
        own = f"alpha={chain.alpha:g}, granularity={chain.granularity!r}"
        return ", ".join(filter(None, [super().extra_repr(), own]))


def converted_class(mixin: type[Converted], cls: type[nn.Module]) -> type[Converted]:
    """``cls`` with ``mixin`` before it; of the same name, by which libraries find their blocks.

    Raises:
        TypeError: a block's type has no adapter (any more).
    """
    if not issubclass(mixin, ConvertedBlock):
        return _mixed(mixin, cls, None)
    adapter = adapter_of(cls)
    if adapter is None:
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} has no adapter; register it first")
    return _mixed(mixin, cls, adapter)


@functools.cache
def _mixed(mixin, cls, adapter) -> type[Converted]:
    attributes = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_acn_mixin": mixin,
        "_acn_original": cls,
    }
    if adapter is not None:
        arguments = list(inspect.signature(cls.forward).parameters)
        # A plain function would become a method.
        attributes |= {"_acn_adapter": staticmethod(adapter) if callable(adapter) else adapter,
                       "_acn_input": arguments[1]}  # fmt: skip
    return type(cls.__name__, (mixin, cls), attributes)


def _blank(mixin: type[Converted], cls: type[nn.Module], *args) -> nn.Module:
    blank = converted_class(mixin, cls)
    return blank.__new__(blank, *args)
