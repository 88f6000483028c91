"""The demonstration from start to end: seeds, tables, and the files it leaves."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

from acn_kernels.demo.experiment import NETWORKS, PRESET, Outcome, reloads_exactly, run_seed
from acn_kernels.demo.report import as_data, as_text
from acn_kernels.files import check_writable, written_whole
from acn_kernels.inference.calibration import check_drop
from acn_kernels.plotting import accuracy_by_depth
from acn_kernels.training.digits import load_digits
from acn_kernels.validation import check_device


def run_demo(
    out: str | os.PathLike,
    *,
    seeds: int = 1,
    epochs: int = 24,
    max_drop: float = 0.01,
    device: str = "cpu",
    as_json: bool = False,
) -> int:
    """Runs the demonstration and writes the cut model, a picture and the figures into ``out``.

    Returns 0, or 1 where the reloaded model differs from the saved one. Every file is written
    whole or not at all.

    Raises:
        ValueError: an argument is out of range, or ``out`` cannot be written into.
    """
    for name, value in (("seeds", seeds), ("epochs", epochs)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it takes a whole number of at least 1")
    check_drop(max_drop)
    check_device(device)
    import matplotlib  # noqa: F401 - where it is missing, that is said before the training

    check_writable(out, "--out")
    out, started, runs = Path(out), time.perf_counter(), []
    for seed in range(seeds):
        runs.append(run_seed(seed, epochs, max_drop, device, progress=not as_json))
    acn = runs[0]["acn"]
    short = acn.model.truncate(acn.cutoff)
    images = load_digits(0).test.images.to(device)
    exact = reloads_exactly(short, out / "model", images)
    accuracy_by_depth(_curves(runs), out / "accuracy.png", {n: runs[0][n].cutoff for n in NETWORKS})
    data = {
        "preset": PRESET,
        "epochs": epochs,
        "max_drop": max_drop,
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - started,
        "reloaded_exactly": exact,
        "parameters": {
            "full": _parameters(acn.model),
            "truncated": _parameters(short),
        },
        "seeds": as_data(runs),
    }
    with written_whole(out / "demo.json") as path:
        path.write_text(json.dumps(data, indent=1) + "\n")
    if as_json:
        print(json.dumps(data, indent=1))
    else:
        print(as_text(runs, max_drop))
        print(
            f"\nThe ACN cut to {acn.cutoff} layers, {_parameters(short):,} of "
            f"{_parameters(acn.model):,} parameters, is in {out / 'model'}; reloaded, its logits "
            f"are {'the same bit for bit' if exact else 'DIFFERENT'}. "
            f"Picture: {out / 'accuracy.png'}. {data['seconds']:.0f} s in all."
        )
    return 0 if exact else 1


def _curves(runs: list[dict[str, Outcome]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([run[name].accuracy for run in runs]) for name in NETWORKS}


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
