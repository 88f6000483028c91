"""Which adapter belongs to a block: by its type, or that type's name where a library owns it."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn

from acn_kernels.convert.adapters import Adapter, PostNorm, PreNorm

_adapters: dict[str, Adapter | Callable[[nn.Module], Adapter]] = {}


def register(block: type[nn.Module] | str, adapter: Adapter | Callable[[nn.Module], Adapter]):
    """Makes blocks of a type known to ``acn.convert``.

    Args:
        block: the type, or its qualified name ("package.module.Class"), which imports nothing.
            Subclasses are taken too as long as they keep its ``forward``.
        adapter: a ``PreNorm`` or ``PostNorm``, or a function from the block to one of them, where
            an option of the block decides.

    Raises:
        TypeError: naming the argument.
    """
    if isinstance(block, type) and issubclass(block, nn.Module):
        block = _name(block)
    if not isinstance(block, str):
        raise TypeError(f"block is {block!r}; it takes a subclass of nn.Module, or its full name")
    if not isinstance(adapter, (PreNorm, PostNorm)) and not inspect.isfunction(adapter):
        raise TypeError(
            f"adapter is a {type(adapter).__name__}; it takes a PreNorm, a PostNorm, or a function "
            "from a block to one"
        )
    _adapters[block] = adapter


def adapter_of(cls: type[nn.Module]) -> Adapter | Callable[[nn.Module], Adapter] | None:
    """What was registered for a block type or the one it inherits its forward from."""
    for base in cls.__mro__:
        found = _adapters.get(_name(base))
        if found is not None:
            # A subclass with another forward is another block.
            same = inspect.unwrap(cls.forward) is inspect.unwrap(base.forward)
            return found if same else None
    return None


def known() -> str:
    """The registered types, one package a line."""
    packages: dict[str, set[str]] = {}
    for name in _adapters:
        packages.setdefault(name.partition(".")[0], set()).add(name.rpartition(".")[2])
    return "\n".join(f"  {package}: {', '.join(sorted(packages[package]))}" for package in packages)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
