"""What a result was measured on: written into every file, so that no figure stands alone."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from acn_kernels import doctor

_ROOT = Path(__file__).parents[2]
_PEERS = ("onnxruntime", "liger-kernel")
_CODE = {".py", ".cpp", ".cu", ".h", ".cuh"}
_CLOCKS = (
    "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
    "temperature.gpu",
)  # fmt: skip


def environment() -> dict[str, object]:
    """Versions, devices, threads and the commit (with "-dirty" where the tree has changes)."""
    return {
        **doctor.report(),
        "peers": {name: _version(name) for name in _PEERS},
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": _answer("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "sources": sources(),
    }


def sources() -> str:
    """A digest of all code that is measured or measures: it tells two dirty trees apart."""
    digest = hashlib.sha256()
    for folder in ("acn_kernels", "benchmarks", "csrc"):
        for file in sorted((_ROOT / folder).rglob("*")):
            if file.suffix in _CODE:
                digest.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def clocks() -> list[dict[str, str]]:
    """Clocks, power limit and temperature of every GPU now; empty without nvidia-smi."""
    query = ["--query-gpu=" + ",".join(_CLOCKS), "--format=csv,noheader"]
    lines = (_answer("nvidia-smi", *query) or "").splitlines()
    return [dict(zip(_CLOCKS, map(str.strip, line.split(",")), strict=False)) for line in lines]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def _answer(*command: str) -> str | None:
    """What the command prints, run in this checkout; None where it fails or is not there."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
