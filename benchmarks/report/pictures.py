"""One picture for each case: every way's time as a multiple of the peer's. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from acn_kernels.files import written_whole
from benchmarks.report.results import Result

_OURS, _OTHERS = "tab:blue", "tab:gray"


def draw(results: Iterable[Result], folder: Path) -> list[Path]:
    """Draws those cases that have a peer and something beside it; returns the PNG files."""
    drawn = [result for result in results if result.peer and len(result.measured) > 1]
    return [_draw(result, folder / f"{result.name}.png") for result in drawn]


def _draw(result: Result, file: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ways = result.measured
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(ways)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, way in enumerate(ways):
        median, low, high = result.ratio(way, result.peer)
        color = _OURS if result.is_ours(way) else _OTHERS
        axes.barh(row, median, color=color, alpha=0.6)
        axes.plot([low, high], [row, row], color="black", linewidth=1.5)
        axes.annotate(f" {median:.2f}", (max(median, high), row), va="center", fontsize=8)
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(ways)), ways, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(f"time, as a multiple of: {result.peer} (line: quartiles; blue: ours)")
    axes.set_title(f"{result.name}: {result.what}", fontsize=8, wrap=True)
    with written_whole(file) as temporary:
        figure.savefig(temporary, dpi=120)
    return file
