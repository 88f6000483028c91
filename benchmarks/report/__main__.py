"""``python -m benchmarks.report DIR [--readme README.md]``"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from acn_kernels.files import written_whole
from benchmarks.report import pictures, predictions, readme, tables
from benchmarks.report.results import load


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Prints the tables of a throughput run and writes them, with a picture of "
        "each case, into its folder.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE",
        help="rewrite the figures between <!-- figures: NAME OF DIR --> and its end marker",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        _report(arguments)
    except (ValueError, OSError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    return 0


def _report(arguments: argparse.Namespace) -> None:
    if arguments.readme is not None and not arguments.readme.is_file():
        raise ValueError(f"--readme is {str(arguments.readme)!r}, which is no file")
    results = load(arguments.folder)
    text = tables.report(results, predictions.beside_measured(results))
    print(text)
    with written_whole(arguments.folder / "report.md") as path:
        path.write_text(text)
    if arguments.readme is not None:
        readme.rewrite(arguments.readme, arguments.folder, results)
    try:
        files = pictures.draw(results, arguments.folder)
    except ImportError as error:
        print(f"no pictures: {error}")
    else:
        print(f"{len(files)} pictures in {arguments.folder}")


if __name__ == "__main__":
    sys.exit(main())
