"""``python -m benchmarks.throughput --suite cpu --out DIR``"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.throughput.case import Setting
from benchmarks.throughput.kernels import KERNEL_CASES
from benchmarks.throughput.runner import run
from benchmarks.throughput.steps import CPU_CASES, TRAIN_CASES

SUITES = {
    "cpu": CPU_CASES,
    "kernels": KERNEL_CASES,
    "train": TRAIN_CASES,
    "all": (*CPU_CASES, *KERNEL_CASES, *TRAIN_CASES),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description="Interleaved rounds in one process; raw samples go to DIR, one file per case.",
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="shrunken shapes: does it all run?")
    parser.add_argument("--quick", action="store_true", help="3 rounds of each case")
    arguments = parser.parse_args()
    setting = Setting(arguments.device, arguments.tiny)
    run(SUITES[arguments.suite], arguments.out, setting, arguments.quick)


if __name__ == "__main__":
    main()
