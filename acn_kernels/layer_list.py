"""An nn.ModuleList that may hold further children beside its layers (the final norm)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from torch import nn

from acn_kernels.known_residual import refuse_residual


class LayerList(nn.ModuleList):
    """The layers are the children with a number for a name; all list methods speak of them alone.

    Raises:
        TypeError: a layer is no nn.Module.
        ValueError: a layer is known to add its own input to its output.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        listed = isinstance(layers, Iterable) and not isinstance(layers, (str, nn.Module))
        if not listed and not isinstance(layers, (nn.ModuleList, nn.Sequential)):
            raise TypeError(f"layers is a {type(layers).__name__}; it takes a sequence of modules")
        super().__init__()
        self.extend(list(layers))

    def _check_layer(self, i: int, layer: nn.Module) -> None:
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layers[{i}] is a {type(layer).__name__}; it takes an nn.Module")
        refuse_residual(i, layer)

    def _numbered(self) -> list[nn.Module]:
        return [module for name, module in self._modules.items() if name.isdigit()]

    def _others(self) -> dict[str, nn.Module | None]:
        return {name: module for name, module in self._modules.items() if not name.isdigit()}

    def _renumber(self, layers: list[nn.Module]) -> None:
        for i, layer in enumerate(layers):
            self._check_layer(i, layer)
        others = self._others()
        self._modules.clear()
        self._modules.update({str(i): layer for i, layer in enumerate(layers)})
        self._modules.update(others)

    def __repr__(self) -> str:
        layers = super().__repr__()  # an nn.ModuleList shows no other children
        others = [f"\n({name}): {m!r}" for name, m in self._others().items() if m is not None]
        if not others:
            return layers
        shown = layers.rpartition(")")[0].rstrip()
        return shown + textwrap.indent("".join(others), "  ") + "\n)"

    def __len__(self) -> int:
        return len(self._numbered())

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._numbered())

    def __getitem__(self, i: int | slice) -> nn.Module:
        return self._numbered()[i]

    def __setitem__(self, i: int, layer: nn.Module) -> None:
        layers = self._numbered()
        layers[i] = layer
        self._renumber(layers)

    def __delitem__(self, i: int | slice) -> None:
        layers = self._numbered()
        del layers[i]
        self._renumber(layers)

    def append(self, layer: nn.Module) -> LayerList:
        return self.extend([layer])

    def insert(self, i: int, layer: nn.Module) -> None:
        layers = self._numbered()
        layers.insert(i, layer)
        self._renumber(layers)

    def extend(self, layers: Iterable[nn.Module]) -> LayerList:
        self._renumber([*self._numbered(), *layers])
        return self

    def pop(self, i: int | slice = -1) -> nn.Module:
        layer = self[i]
        del self[i]
        return layer
