"""A process that fails in the middle of a step: the others end by themselves, within a minute."""

from __future__ import annotations

import functools
import time

import pytest
from processes import start
from strategies import ALL
from torch import multiprocessing

SECONDS = 60


def failing(strategy: str, rank: int) -> None:
    """Three steps' worth of the strategy; process 1 fails where it would begin the second."""
    for step in range(3):
        if rank == 1 and step == 1:
            raise OSError("this process fails")
        ALL[strategy](rank, "plain")


@pytest.mark.parametrize(
    "strategy",
    [
        "data parallel",
        pytest.param("fully sharded", marks=pytest.mark.slow),
        pytest.param("tensor parallel", marks=pytest.mark.slow),
        pytest.param("pipeline", marks=pytest.mark.slow),
    ],
)
def test_the_others_end_too(strategy, tmp_path):
    context = multiprocessing.get_context("spawn")
    work = functools.partial(failing, strategy)
    processes = [
        context.Process(target=start, args=(rank, work, str(tmp_path))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        processes[1].join(SECONDS)
        failed = time.monotonic()
        processes[0].join(SECONDS)
        waited = time.monotonic() - failed
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [1, 1] and waited < SECONDS
