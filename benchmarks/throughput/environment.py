"""What a result was measured on: written into every file, so that no figure stands alone."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from acn_kernels import doctor


def environment() -> dict[str, object]:
    """Versions, devices, threads and the commit (with "-dirty" where the tree has changes)."""
    return {
        **doctor.report(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def _git(*arguments: str) -> str | None:
    """git's answer in this checkout; None outside one."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
