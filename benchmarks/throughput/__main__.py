"""``python -m benchmarks.throughput --suite cpu --out DIR``"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.throughput.runner import run
from benchmarks.throughput.steps import MIXER_CIFAR, VIT_TINY

SUITES = {"cpu": (VIT_TINY, MIXER_CIFAR)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput")
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="3 rounds: does it run?")
    arguments = parser.parse_args()
    run(SUITES[arguments.suite], arguments.out, arguments.device, arguments.quick)


if __name__ == "__main__":
    main()
