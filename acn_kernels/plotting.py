"""Pictures; needs matplotlib (the extra "demo")."""

from __future__ import annotations

import os

from torch import Tensor

from acn_kernels.files import written_whole


def accuracy_by_depth(
    curves: dict[str, Tensor], path: str | os.PathLike, cutoffs: dict[str, int]
) -> None:
    """Draws accuracy against depth into a PNG file, written whole or not at all.

    Args:
        curves: by name, accuracy [seeds, L+1] in [0, 1]; the mean is drawn, the range shaded.
        cutoffs: by name, the depth to mark.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, accuracy in curves.items():
        percent = 100 * accuracy
        mean, depths = percent.mean(0), range(percent.shape[1])
        (line,) = axes.plot(depths, mean, marker="o", markersize=3, label=name)
        low, high = percent.amin(0), percent.amax(0)
        axes.fill_between(depths, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.axvline(cutoffs[name], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xlabel="layers used (dotted: cutoff)", ylabel="test accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150)
