"""Pictures; needs matplotlib (the extras "demo" and "paper")."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from acn_kernels.files import written_whole

_LEGEND_INSIDE = 4  # curves; more of them would be hidden by their names


@contextmanager
def _axes(path: str | os.PathLike, width: float = 6, height: float = 3.6) -> Iterator:
    """Axes to draw on; the PNG file is written whole, or not at all where drawing fails."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots()
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150)


def accuracy_by_depth(
    curves: dict[str, Tensor], path: str | os.PathLike, cutoffs: dict[str, int]
) -> None:
    """Draws accuracy against depth into a PNG file, written whole or not at all.

    Args:
        curves: by name, accuracy [seeds, L+1] in [0, 1]; the mean is drawn, the range shaded.
        cutoffs: by name, the depth to mark.
    """
    with _axes(path) as axes:
        for name, accuracy in curves.items():
            percent = 100 * accuracy
            color = _line_with_range(axes, range(percent.shape[1]), percent, name)
            axes.axvline(cutoffs[name], color=color, linestyle=":", linewidth=1)
        axes.set(xlabel="layers used (dotted: cutoff)", ylabel="test accuracy, %", ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")


def lines(
    curves: Mapping[str, Tensor],
    x: Sequence[float] | Mapping[str, Sequence[float]],
    path: str | os.PathLike,
    x_label: str,
    y_label: str,
    title: str = "",
) -> None:
    """Draws curves [points], or [seeds, points] with their range shaded, over x [points]: one for
    all, or each curve's own by name."""
    many = len(curves) > _LEGEND_INSIDE
    with _axes(path, width=8 if many else 6) as axes:
        for name, values in curves.items():
            own = x[name] if isinstance(x, Mapping) else x
            _line_with_range(axes, own, values if values.dim() == 2 else values[None], name)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        axes.grid(alpha=0.3)
        if many:
            axes.figure.legend(loc="outside right upper")
        else:
            axes.legend()


def heat_map(
    values: Tensor, path: str | os.PathLike, x_label: str, y_label: str, title: str = ""
) -> None:
    """Draws a matrix [rows, columns], row 0 at the bottom."""
    with _axes(path) as axes:
        image = axes.imshow(values.double().numpy(), aspect="auto", origin="lower")
        axes.figure.colorbar(image)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)


def _line_with_range(axes, x: Sequence[float], values: Tensor, name: str) -> str:
    """Draws the mean of values [seeds, points] and shades their range; returns the colour."""
    (line,) = axes.plot(x, values.mean(0), marker="o", markersize=3, label=name)
    color = line.get_color()
    axes.fill_between(x, values.amin(0), values.amax(0), color=color, alpha=0.2, linewidth=0)
    return color
