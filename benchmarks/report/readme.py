"""The README's figures, rewritten from the files of a run between two marker comments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from acn_kernels.files import written_whole
from benchmarks.report.results import Result
from benchmarks.report.tables import conditions_line, ratio_text, seconds_text, table
from benchmarks.throughput.case import Comparison

END = "<!-- end of figures -->"


def begin(name: str) -> str:
    """The comment that the figures of the folder ``name`` stand under."""
    return f"<!-- figures: {name} -->"


def rewrite(readme: Path, folder: Path, results: Sequence[Result]) -> None:
    """Puts the figures of ``folder`` between its markers in ``readme``; all else stays.

    Raises:
        ValueError: the README has no such pair of markers, or more than one; the run is tiny or
            quick.
    """
    if any(result.raw.get(flag) for result in results for flag in ("tiny", "quick")):
        raise ValueError(f"{folder} holds a tiny or quick run, whose times mean nothing")
    name, text = folder.resolve().name, readme.read_text()
    block = re.compile(f"({re.escape(begin(name))}\n).*?({re.escape(END)})", re.DOTALL)
    if len(block.findall(text)) != 1:
        raise ValueError(f"{readme} takes {begin(name)!r} and {END!r} around its figures, once")
    inside = figures(results)
    with written_whole(readme) as path:
        path.write_text(block.sub(lambda found: f"{found[1]}{inside}\n{found[2]}", text))


def figures(results: Sequence[Result]) -> str:
    """A line on the conditions, then under each work a row for each question, won or lost."""
    facts = conditions_line(results)
    rounds = sorted({result.rounds for result in results})
    rows = []
    for result in results:
        dtype = result.raw["dtype"].removeprefix("torch.")
        if result.comparisons:
            rows.append([f"**{result.what}, {dtype}**", "", ""])
        for comparison in result.comparisons:
            ratio = result.answer(comparison)
            rows.append(
                [
                    _measured(result, comparison.way, comparison),
                    _measured(result, comparison.against, comparison),
                    ratio_text(ratio) if ratio else "not measured",
                ]
            )
    heads = ["way", "against", "ratio (quartiles)"]
    between = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    return f"{facts}; medians of {between} interleaved rounds.\n\n{table(heads, rows)}"


def _measured(result: Result, way: str, question: Comparison) -> str:
    """The way with the figure that the question is about."""
    way = result.named(way)
    if way not in result.measured:
        return way
    if question.of == "kept":
        return f"{way}, {(result.fact(way, 'kept_bytes') or 0) / 2**20:.0f} MiB kept"
    factor = question.factor if way == result.named(question.against) else 1.0
    times = "" if factor == 1 else f"{factor:.3f} of "
    return f"{times}{way}, {seconds_text(result.seconds(way)).partition(' (')[0]}"
