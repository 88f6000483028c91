"""``python -m benchmarks.paper --preset small --all --data-dir DIR``"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from acn_kernels.training.datasets import DATA_DIR, data_folder
from acn_kernels.validation import check_device, check_size
from benchmarks.arguments import check_budget, make_folder
from benchmarks.paper import report, runner
from benchmarks.paper.dry_run import describe
from benchmarks.paper.experiments import EXPERIMENTS
from benchmarks.paper.spec import PRESETS

RUNS_LEFT, SOME_FAILED = 3, 1
_JOBS_ON_A_CARD = 4
_SEEDS = {"smoke": 1, "small": 2, "medium": 3, "brief": 3, "paper": 3}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description="The paper's experiments: one JSON file each, a table that sets ours beside "
        "the paper's, pictures. What is finished is kept, so that a run goes on where it stopped.",
    )
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--all", action="store_true", help="every experiment")
    parser.add_argument(
        "--experiment", action="append", choices=EXPERIMENTS, metavar="NAME", default=[],
        help=f"one of {', '.join(EXPERIMENTS)}; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, help="1 (smoke), 2 (small), 3 (others)")
    parser.add_argument("--data-dir", metavar="DIR", help=f"where the data is, or {DATA_DIR}")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/paper"), metavar="DIR")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/paper"), metavar="DIR",
        help="trained networks and single runs; may be deleted",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1")
    parser.add_argument(
        "--jobs",
        type=int,
        help=f"runs at once: the cores on a CPU, {_JOBS_ON_A_CARD} on a card, which they share",
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS",
        help=f"stop then, keep what is done, exit with {RUNS_LEFT}; the same command goes on",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, and end")
    parser.add_argument("--report", action="store_true", help="only write tables and pictures")
    return parser


def _check(arguments: argparse.Namespace, names: list[str], there: list[str]) -> None:
    """Raises ValueError or OSError where an option cannot be followed."""
    if not set(names) <= set(there):
        raise ValueError(f"--preset {arguments.preset} has only {', '.join(there)}")
    if not (names or arguments.report):
        raise ValueError("it takes --experiment, --all or --report")
    for option, value in (("--seeds", arguments.seeds), ("--jobs", arguments.jobs)):
        if value is not None:
            check_size(option, value, 1)
    check_budget(arguments.budget)
    if arguments.dry_run or arguments.report:
        return
    # A process of the pool that finds no device would be started again for ever.
    check_device(arguments.device)
    if arguments.preset != "smoke":
        data_folder(arguments.data_dir)
    make_folder("--out", arguments.out)
    make_folder("--work", arguments.work)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    preset = arguments.preset
    there = [name for name, experiment in EXPERIMENTS.items() if preset in experiment.presets]
    names = there if arguments.all else arguments.experiment
    try:
        _check(arguments, names, there)
    except (ValueError, OSError) as error:
        print(f"benchmarks.paper: {error}", file=sys.stderr)
        return 2
    seeds = arguments.seeds or _SEEDS[preset]
    jobs = arguments.jobs or (os.cpu_count() if arguments.device == "cpu" else _JOBS_ON_A_CARD)
    if arguments.dry_run:
        print(describe(names, preset, seeds))
        return 0
    folder, status = arguments.out / preset, 0
    if not arguments.report:
        deadline = None if arguments.budget is None else time.time() + arguments.budget
        outcome = runner.run(names, runner.Settings(
            preset, seeds, arguments.out, arguments.work, arguments.data_dir,
            arguments.device, jobs, deadline,
        ))  # fmt: skip
        if outcome.left:
            print(f"{len(outcome.left)} runs are left; the same command goes on with them")
        status = SOME_FAILED if outcome.failed else RUNS_LEFT if outcome.left else 0
    try:
        print(report.write(folder))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return status or 2
    return status


if __name__ == "__main__":
    # As Ctrl-C does: an end by the signal itself would leave the processes of the runs behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
