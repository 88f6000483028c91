"""One picture for each case: every way's time as a multiple of the peer's; accuracy against time
where the ways differ in it. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from acn_kernels.files import written_whole
from benchmarks.report.results import Result
from benchmarks.throughput.case import FASTEST_PEER

_OURS, _OTHERS = "tab:blue", "tab:gray"


def draw(results: Iterable[Result], folder: Path) -> list[Path]:
    """Draws those cases that have a peer and something beside it; returns the PNG files."""
    drawn = [result for result in results if result.peer and len(result.measured) > 1]
    return [_draw(result, folder / f"{result.name}.png") for result in drawn]


def _draw(result: Result, file: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 4 if result.quality else 1.2 + 0.3 * len(result.measured)
    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    (_draw_curve if result.quality else _draw_bars)(axes, result)
    axes.margins(x=0.1)
    axes.set_title(f"{result.name}: {result.what}", fontsize=8, wrap=True)
    with written_whole(file) as temporary:
        figure.savefig(temporary, dpi=120)
    return file


def _draw_curve(axes, result: Result) -> None:
    """Accuracy against time: our ways as one curve, the others at their place."""
    best = result.named(FASTEST_PEER)
    for ours, mark in ((True, "o-"), (False, "s")):
        ways = [way for way in result.measured if result.is_ours(way) == ours]
        places = sorted((result.ratio(way, best).median, result.quality[way]) for way in ways)
        axes.plot(
            [time for time, _ in places], [100 * accuracy for _, accuracy in places], mark,
            color=_OURS if ours else _OTHERS, label="ours" if ours else "full depth, others",
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel(f"time, as a multiple of: {best}")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8)


def _draw_bars(axes, result: Result) -> None:
    ways = result.measured
    for row, way in enumerate(ways):
        median, low, high = result.ratio(way, result.peer)
        color = _OURS if result.is_ours(way) else _OTHERS
        axes.barh(row, median, color=color, alpha=0.6)
        axes.plot([low, high], [row, row], color="black", linewidth=1.5)
        axes.annotate(f" {median:.2f}", (max(median, high), row), va="center", fontsize=8)
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(ways)), ways, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"time, as a multiple of: {result.peer} (line: quartiles; blue: ours)")
