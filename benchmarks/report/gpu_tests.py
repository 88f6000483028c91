"""``python -m benchmarks.report.gpu_tests FILE``: the tests that failed, one name a line.

FILE is what ``pytest --junit-xml=FILE -o junit_family=xunit1`` wrote.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Failure(NamedTuple):
    """A test by the name that pytest takes, and the line that says what went wrong."""

    name: str
    why: str


class Outcomes(NamedTuple):
    passed: int
    skipped: int
    failures: list[Failure]


def outcomes(file: Path) -> Outcomes:
    """Every test once, however many of its phases failed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole XML file.
    """
    try:
        cases = list(ElementTree.parse(file).iter("testcase"))
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is no XML: {error}") from error
    failures: dict[str, Failure] = {}
    passed = skipped = 0
    for case in cases:
        wrong = case.find("failure")
        wrong = case.find("error") if wrong is None else wrong
        if wrong is not None:
            name = f"{_file_of(case)}::{case.get('name')}"
            failures.setdefault(name, Failure(name, _telling_line(wrong)))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Outcomes(passed, skipped, list(failures.values()))


def _file_of(case: ElementTree.Element) -> str:
    return case.get("file") or case.get("classname", "").replace(".", "/") + ".py"


def _telling_line(wrong: ElementTree.Element) -> str:
    """The exception with the first line of what it says, as pytest marks it."""
    lines = (wrong.text or "").splitlines()
    marked = [line[2:].strip() for line in lines if line.startswith("E ")]
    said = wrong.get("message", "").splitlines()
    return next(filter(None, (*marked, *said, *lines)), "")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.gpu_tests", description=__doc__
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    try:
        failures = outcomes(parser.parse_args().file).failures
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(failure.name for failure in failures), end="\n" * bool(failures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
