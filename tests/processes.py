"""Running a function on several gloo processes, and what each of them returned; waiting for what
another process does."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

PROCESSES = 2
SECONDS = 120  # on a busy machine; some 8 are enough


def until(it_is_so: Callable[[], object], seconds: float) -> None:
    """Waits; fails where it is not so in time."""
    deadline = time.monotonic() + seconds
    while not it_is_so():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


def start(rank: int, work: Callable, folder: str) -> None:
    """What a process runs: ``work(rank)``, whose result it leaves in ``folder``."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES,
        timeout=datetime.timedelta(seconds=SECONDS / 2),
    )  # fmt: skip
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def results_of(work: Callable[[int], object], folder: Path) -> list:
    """What ``work(rank)``, a function of a module, returned in each process."""
    processes = multiprocessing.spawn(start, (work, str(folder)), PROCESSES, join=False)
    deadline = time.monotonic() + SECONDS
    while not processes.join(timeout=1):  # raises as soon as one of them fails
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"the processes are not done after {SECONDS} s")
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]
