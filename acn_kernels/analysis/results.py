"""What every analysis returns: curves or a grid, plain data that prints and draws itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from torch import Tensor

from acn_kernels import plotting
from acn_kernels.text_table import text_table


@dataclasses.dataclass(frozen=True)
class Curves:
    """Named curves over one x axis (layers, depths, noise levels).

    values: by name, [points] on the CPU. x: [points]. unit: of the values, in words.
    """

    title: str
    x_label: str
    x: Sequence[float]
    unit: str
    values: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __str__(self) -> str:
        rows = {name: [f"{v:.4g}" for v in curve.tolist()] for name, curve in self.values.items()}
        return text_table(f"{self.title} ({self.unit}) by {self.x_label}", _names(self.x), rows)

    def draw(self, path: str | os.PathLike) -> None:
        """Writes a PNG file, whole or not at all. Needs matplotlib."""
        plotting.lines(self.values, self.x, path, self.x_label, self.unit, self.title)

    def beside(self, **others: Curves) -> Curves:
        """These curves together with others over the same x, each named "NAME CURVE"."""
        values = dict(self.values)
        for name, other in others.items():
            if list(other.x) != list(self.x):
                raise ValueError(f"{name} has x {list(other.x)}; it takes {list(self.x)}")
            values |= {f"{name} {curve}": value for curve, value in other.values.items()}
        return dataclasses.replace(self, values=values)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A matrix with named axes: values [rows, columns] on the CPU, in ``unit``."""

    title: str
    row_label: str
    column_label: str
    unit: str
    values: Tensor

    def __str__(self) -> str:
        rows = {
            f"{self.row_label} {i}": [f"{v:.4g}" for v in row]
            for i, row in enumerate(self.values.tolist())
        }
        columns = _names(range(self.values.shape[1]))
        return text_table(f"{self.title} ({self.unit}) by {self.column_label}", columns, rows)

    def draw(self, path: str | os.PathLike) -> None:
        """Writes a heat map into a PNG file, whole or not at all. Needs matplotlib."""
        title = f"{self.title} ({self.unit})"
        plotting.heat_map(self.values, path, self.column_label, self.row_label, title)


def _names(x: Sequence[float]) -> list[str]:
    return [f"{value:g}" for value in x]
