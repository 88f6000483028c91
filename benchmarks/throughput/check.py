"""``python -m benchmarks.throughput.check DIR --suite all``: is everything there, and sound?"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.throughput.case import Case
from benchmarks.throughput.suites import SUITES, cases_of


def problems(cases: Iterable[Case], folder: Path) -> list[str]:
    """What is wrong with the files of the cases, one line each; none where all is well.

    Every case has a file; in it every way has positive samples from the same number of rounds and
    a finite error, or is named as missing with a reason; none has failed.
    """
    found = []
    for case in cases:
        file = folder / f"{case.name}.json"
        if not file.is_file():
            found.append(f"{case.name}: no file {file}")
            continue
        try:
            result = json.loads(file.read_text())
            found += [f"{case.name}: {problem}" for problem in _problems(result)]
        except ValueError as error:
            found.append(f"{case.name}: {file} is no JSON: {error}")
        except (KeyError, TypeError, AttributeError):
            found.append(f"{case.name}: {file} is no result of benchmarks.throughput")
    return found


def _problems(result: dict) -> Iterable[str]:
    for name, error in result["failed"].items():
        yield f"{name} failed: {error}"
    rounds = max(map(len, result["seconds"].values()), default=0)
    if not rounds:
        yield "nothing was measured"
    for name in result["ways"]:
        if name in result["missing"] or name in result["failed"]:
            continue
        samples = result["seconds"].get(name, [])
        if len(samples) != rounds or not all(0 < sample < math.inf for sample in samples):
            yield f"{name} has {len(samples)} samples of {rounds} rounds, or some are not positive"
        error = result["first_call"][name]["relative_error"]
        if error is not None and not math.isfinite(error):
            yield f"{name} has relative error {error}"
    for key in ("ceilings", "environment"):
        if not result.get(key):
            yield f"has no {key}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput.check",
        description="Checks the files of a run; prints what is wrong and exits with 1.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--suite", choices=SUITES, nargs="+", default=["all"])
    parser.add_argument("--case", action="append", metavar="NAME", help="only cases so named")
    arguments = parser.parse_args(argv)
    try:
        cases = cases_of(arguments.suite, arguments.case)
    except ValueError as error:
        print(f"benchmarks.throughput.check: {error}", file=sys.stderr)
        return 2
    found = problems(cases, arguments.folder)
    print("\n".join(found) or f"{len(cases)} cases, every way measured or missing for a reason")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
