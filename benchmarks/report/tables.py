"""The figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.report.results import Result, Spread, conditions

_FLAGS = {
    "tiny": "its times mean nothing",
    "quick": "its times mean nothing",
    "brief": "few rounds, and compiled ways only where a target names them",
}
_NONE = "-"  # in the place of a figure that was not measured


def report(results: Sequence[Result], predicted: str | None = None) -> str:
    """Everything: the conditions, the answers to all questions, what was ``predicted`` (a table),
    then every case in full."""
    facts = [f"- {name}: {value}" for name, value in conditions(results).items()]
    parts = ["# Throughput", "\n".join(facts)]
    warnings = [f"**{flag} run: {_FLAGS[flag]}.**" for flag in _flags(results)]
    parts += [*warnings, "## Answers", answers(results)]
    parts += ["## Predictions", predicted] if predicted else []
    parts += ["## Cases"]
    parts += [case(result) for result in results]
    return "\n\n".join(parts) + "\n"


def _flags(results: Iterable[Result]) -> list[str]:
    found = list(results)
    return [flag for flag in _FLAGS if any(r.raw.get(flag) for r in found)]


def conditions_line(results: Sequence[Result]) -> str:
    """What the results were measured on, in one line."""
    return "; ".join(f"{name} {value}" for name, value in conditions(results).items())


def answers(results: Iterable[Result], with_target: bool = False) -> str:
    """One row for each question of each case, whichever way it went; only those
    ``with_target``, if asked so."""
    rows = []
    for result in results:
        for comparison in result.comparisons:
            if with_target and comparison.at_most is None:
                continue
            ratio = result.answer(comparison)
            aim, met = "", ""
            if comparison.at_most is not None:
                aim = f"at most {comparison.at_most:.3f}"
                met = "" if ratio is None else "yes" if ratio.median <= comparison.at_most else "no"
            shown = ratio_text(ratio) if ratio else _why_not(result, comparison)
            rows.append([result.name, comparison.what, shown, aim, met])
    return table(["case", "question", "ratio (quartiles)", "aim", "met"], rows)


def _why_not(result: Result, comparison) -> str:
    for way in (comparison.way, comparison.against):
        if way in result.absent:
            return f"{_NONE} ({way}: {_one_line(result.absent[way])})"
    return _NONE


def case(result: Result) -> str:
    """All ways of one case, and those that are missing."""
    peer = result.peer
    rows = []
    for way in result.measured:
        rate = result.rate(way)
        rows.append(
            [
                f"**{way}**" if result.is_ours(way) else way,
                seconds_text(result.seconds(way)),
                ratio_text(result.ratio(way, peer)) if peer else _NONE,
                _optional(result.fact(way, "relative_error"), "{:.1e}"),
                _optional(_scaled(result.fact(way, "peak_bytes"), 2**20), "{:.1f}"),
                _optional(_scaled(result.fact(way, "kept_bytes"), 2**20), "{:.1f}"),
                rate_text(*rate) if rate else _NONE,
                _optional(result.fact(way, "seconds"), "{:.2f} s"),
            ]
        )
    heads = [
        "way", "median (quartiles)", f"of {peer}", "error", "peak MiB", "kept MiB", "rate",
        "first call",
    ]  # fmt: skip
    lines = [
        f"### {result.name}",
        f"{result.what}; {result.raw['dtype'].removeprefix('torch.')}, {result.raw['device']}, "
        f"{result.rounds} rounds"
        + "".join(f"; {key} {value}" for key, value in result.raw.get("facts", {}).items())
        + ".",
        table(heads, rows),
    ]
    absent = [f"- {way}: {_one_line(why)}" for way, why in result.absent.items()]
    if absent:
        lines.append("Not measured:\n\n" + "\n".join(absent))
    return "\n\n".join(lines)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def seconds_text(spread: Spread) -> str:
    """Milliseconds, or microseconds below one: "1.234 ms (1.230 to 1.250)"."""
    scale, unit = (1e3, "ms") if spread.median >= 1e-3 else (1e6, "µs")
    median, low, high = (f"{scale * value:.4g}" for value in spread)
    return f"{median} {unit} ({low} to {high})"


def ratio_text(spread: Spread) -> str:
    if spread.low == spread.high:
        return f"{spread.median:.3f}"
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def rate_text(rate: float, unit: str, share: float | None) -> str:
    """ "3.1 TB/s, 92 % of copy" or "512 GFLOP/s, 60 % of matmul"."""
    scale, prefix = (1e12, "T") if rate >= 1e12 else (1e9, "G")
    text = f"{rate / scale:.3g} {prefix}{unit}/s"
    if share is None:
        return text
    return f"{text}, {100 * share:.0f} % of {'copy' if unit == 'B' else 'matmul'}"


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value / by


def _optional(value: float | None, template: str) -> str:
    return _NONE if value is None else template.format(value)


def _one_line(text: str) -> str:
    lines = text.splitlines() or [""]
    return lines[0][:160]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
