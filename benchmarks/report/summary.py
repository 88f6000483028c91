"""``python -m benchmarks.report.summary DIR``: what benchmarks/on_gpu.sh found, on one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.gpu_tests import outcomes
from benchmarks.report.predictions import beside_measured
from benchmarks.report.results import Result, load
from benchmarks.report.tables import answers, conditions_line

_MOST_FAILURES = 25
_MOST_ERRORS = 25
_WIDTH = 200


def summary(folder: Path) -> str:
    """Pieces, failed tests with the first line of their errors, ways that failed, answers that
    have a target, and predictions beside what came out. Some 10,000 characters at most, where
    failures are many by naming the first of them."""
    results, unread = [], ""
    try:
        results = load(folder)
    except FileNotFoundError:
        pass
    except ValueError as error:
        unread = str(error)
    parts = [_pieces(folder), _tests(folder), unread, _failed_ways(results)]
    if results:
        parts += [conditions_line(results), answers(results, with_target=True)]
        parts += [beside_measured(results)]
    return "\n\n".join(filter(None, parts))


def _pieces(folder: Path) -> str:
    file = folder / "pieces.txt"
    return file.read_text().strip() if file.is_file() else "no piece has run"


def _tests(folder: Path) -> str:
    parts = []
    for name in ("gpu_tests.xml", "gpu_tests_again.xml"):
        try:
            passed, skipped, failures = outcomes(folder / name)
        except FileNotFoundError:
            continue
        except ValueError as error:
            parts.append(str(error))
            continue
        lines = [f"{name}: {passed} passed, {skipped} skipped, {len(failures)} failed"]
        lines += [f"  {each.name}: {each.why}"[:_WIDTH] for each in failures[:_MOST_FAILURES]]
        if len(failures) > _MOST_FAILURES:
            lines.append(f"  and {len(failures) - _MOST_FAILURES} more")
        parts.append("\n".join(lines))
    return "\n".join(parts) or "no test has run"


def _failed_ways(results: Sequence[Result]) -> str:
    found = [
        f"  {result.name}, {way}: {why.splitlines()[0]}"[:_WIDTH]
        for result in results
        for way, why in result.raw.get("failed", {}).items()
    ]
    if not found:
        return ""
    more = [f"  and {len(found) - _MOST_ERRORS} more"] if len(found) > _MOST_ERRORS else []
    return "\n".join(["ways that failed:", *found[:_MOST_ERRORS], *more])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.summary", description=__doc__
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    print(summary(parser.parse_args().folder))


if __name__ == "__main__":
    main()
