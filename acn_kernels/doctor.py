"""What this installation is, which paths work and why the others do not: `acn-kernels doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import torch

from acn_kernels import _extension, dispatch

if TYPE_CHECKING:
    from acn_kernels.kernels.aot import CompiledCost

_DISTRIBUTION = "acn-kernels"
_COST_COLUMNS = (("target", 8), ("registers", 11), ("shared B", 10), ("spill B", 9))
_INSTRUCTION_WIDTH = 25


def report() -> dict[str, Any]:
    """The state of the installation as plain data (str, bool, int, None, lists and dicts).

    Keys: "package", "python", "torch", "triton" (None where not installed), "cuda" (the version
    torch was built for, None for a CPU build), "driver" (of the NVIDIA GPU, None where there is
    none), "gpus" (one {"name", "capability", "memory_bytes"} each), "extension" (one line) and
    "backends" ({name: {"available", "reason"}}).
    """
    return {
        "package": _package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "cuda": torch.version.cuda,
        "driver": _driver_version(),
        "gpus": _gpus(),
        "extension": _extension.state(),
        "backends": {
            name: {"available": available, "reason": reason}
            for name, (available, reason) in dispatch.availability().items()
        },
    }


def main(compile_targets: list[str] | None = None, as_json: bool = False) -> int:
    """Prints the report and, with ``compile_targets`` such as ["sm_90"], what each kernel costs.

    Returns 1 where a kernel does not compile or breaks a bound, or where kernels cannot be
    compiled in this process at all (no Triton, or TRITON_INTERPRET=1); else 0. Raises ValueError
    for an unknown target.
    """
    facts = report()
    if not as_json:
        print("\n".join(_lines(facts)))
    if not compile_targets:
        if as_json:
            print(json.dumps(facts, indent=2))
        return 0
    try:
        from acn_kernels.kernels import aot

        cases = aot.registered_cases()
    except (ImportError, RuntimeError) as error:
        problem = f"kernels cannot be compiled here: {error}"
        print(json.dumps({**facts, "kernels_error": problem}, indent=2) if as_json else problem)
        return 1
    costs = aot.compile_all(compile_targets, cases)
    if as_json:
        rows = [_cost_row(cost) for cost in costs]
        print(json.dumps({**facts, "kernels": rows}, indent=2))
        return int(any(row["violations"] for row in rows))
    name_width = max((len(case.name) for case in cases), default=0)
    print()
    print(_table_heading(name_width))
    broken = 0
    for cost in costs:  # a row as soon as it is known: a long list takes minutes
        print(_table_row(cost, name_width), flush=True)
        broken += bool(cost.violations())
    print(f"{len(cases) * len(compile_targets)} checked, {broken} not ok")
    return int(broken > 0)


def _package_version() -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        import acn_kernels

        return acn_kernels.__version__


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        import triton
    except Exception as error:  # a damaged one is what a doctor is asked about
        return f"does not import ({error})"
    return triton.__version__


def _driver_version() -> str | None:
    """Asked of nvidia-smi, because a torch without CUDA support cannot tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    if done.returncode != 0:
        return f"unknown ({(done.stderr or done.stdout).strip()})"
    return next(iter(done.stdout.split()), None)


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        {
            "name": device.name,
            "capability": f"{device.major}.{device.minor}",
            "memory_bytes": device.total_memory,
        }
        for device in devices
    ]


def _lines(facts: dict[str, Any]) -> list[str]:
    gpus = [
        f"{gpu['name']}, capability {gpu['capability']}, {gpu['memory_bytes'] / 2**30:.0f} GiB"
        for gpu in facts["gpus"]
    ]
    rows = [
        ("acn_kernels", facts["package"]),
        ("python", facts["python"]),
        ("torch", f"{facts['torch']} ({_built_for(facts['cuda'])})"),
        ("triton", facts["triton"] or "not installed"),
        ("driver", facts["driver"] or "none found"),
        *((f"gpu {index}", gpu) for index, gpu in enumerate(gpus)),
        *([] if gpus else [("gpu", "none that torch can use")]),
        ("extension", facts["extension"]),
    ]
    for name, backend in facts["backends"].items():
        state = "available" if backend["available"] else "not available"
        reason = f": {backend['reason']}" if backend["reason"] else ""
        rows.append((f"backend {name}", state + reason))
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name:<{width}}{value}" for name, value in rows]


def _built_for(cuda: str | None) -> str:
    return f"built for CUDA {cuda}" if cuda else "built without CUDA"


def _cost_row(cost: CompiledCost) -> dict[str, Any]:
    return {
        "kernel": cost.case.name,
        "target": cost.target,
        "registers": cost.registers,
        "shared_bytes": cost.shared_bytes,
        "spill_bytes": cost.spill_bytes,
        "tensor_core_instructions": list(cost.tensor_core_instructions),
        "violations": cost.violations(),
    }


def _table_heading(name_width: int) -> str:
    columns = "".join(f"{name:>{width}}" for name, width in _COST_COLUMNS)
    return f"{'kernel':<{name_width}}{columns}  {'tensor core':<{_INSTRUCTION_WIDTH}} verdict"


def _table_row(cost: CompiledCost, name_width: int) -> str:
    counts = (cost.registers, cost.shared_bytes, cost.spill_bytes)
    values = (cost.target, *(("-",) * 3 if cost.error else counts))
    cells = zip(values, _COST_COLUMNS, strict=True)
    columns = "".join(f"{value:>{width}}" for value, (_, width) in cells)
    instructions = ", ".join(cost.tensor_core_instructions) or "-"
    # The message of a compiler is many lines long; a table row is one.
    verdict = " ".join("; ".join(cost.violations()).split()) or "ok"
    name = f"{cost.case.name:<{name_width}}{columns}"
    return f"{name}  {instructions:<{_INSTRUCTION_WIDTH}} {verdict}"
