"""``python -m benchmarks.throughput --suite cpu --out DIR``"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from acn_kernels.validation import check_device
from benchmarks.arguments import check_budget, make_folder
from benchmarks.throughput.case import Case, Setting
from benchmarks.throughput.check import problems
from benchmarks.throughput.runner import Plan, run
from benchmarks.throughput.suites import SUITES, cases_of

CASES_LEFT, SOME_FAILED = 3, 1  # exit statuses; the first where the budget ended the run early


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description="Interleaved rounds in one process; raw samples go to DIR, one file per case. "
        "`python -m benchmarks.report DIR` makes tables and pictures of them.",
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--case", action="append", metavar="NAME", help="only cases so named")
    parser.add_argument("--tiny", action="store_true", help="shrunken shapes: does it all run?")
    parser.add_argument("--quick", action="store_true", help="3 rounds of each case")
    parser.add_argument(
        "--brief", action="store_true",
        help="9 rounds of each case; nothing is compiled but what a target is set for or against",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS",
        help="begin no case once three fifths are spent, and take the rounds that fit; exits with "
        f"{CASES_LEFT} where some are left",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="keep what this code measured in DIR on this device"
    )
    parser.add_argument(
        "--ours", action="store_true", help="leave out all peers but the first of each case"
    )
    return parser


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    """The cases; ValueError where an option cannot be followed."""
    cases = cases_of([arguments.suite], arguments.case)
    check_budget(arguments.budget)
    check_device(arguments.device)
    make_folder("--out", arguments.out)
    return cases


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        cases = _chosen(arguments)
    except ValueError as error:
        print(f"benchmarks.throughput: {error}", file=sys.stderr)
        return 2
    plan = Plan(
        arguments.quick, arguments.budget, arguments.resume, arguments.ours, arguments.brief
    )
    setting = Setting(arguments.device, arguments.tiny)
    with tempfile.TemporaryDirectory() as cache:
        # An empty cache, so that first calls show what compiling takes and not what is left of it.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
        left = run(cases, arguments.out, setting, plan)
    found = problems((case for case in cases if case.name not in left), arguments.out)
    for problem in found:
        print(problem, file=sys.stderr)
    if left:
        print(f"left for another run with --resume: {', '.join(left)}")
    return SOME_FAILED if found else CASES_LEFT if left else 0


if __name__ == "__main__":
    sys.exit(main())
