"""The CUDA sources by nvcc, without torch and without a GPU: they compile and spill nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
# A block of the largest shape has 512 threads, and a multiprocessor 65,536 registers.
MOST_REGISTERS = 128

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")


def kernels_of(report: str) -> dict[str, dict[str, int]]:
    """What ptxas says of every kernel: registers, and bytes spilled either way."""
    found = {}
    for part in report.split("Compiling entry function ")[1:]:
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        found[part.split("'")[1]] = {
            "registers": int(registers[1]),
            "spilled": int(spills[1]) + int(spills[2]),
        }
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_and_spills_nothing(tmp_path, source):
    done = subprocess.run(
        ["nvcc", "-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra",
         f"-I{ROOT}/csrc/include", "-gencode=arch=compute_90,code=sm_90", "-Xptxas", "-v",
         "-cubin", "-o", tmp_path / "kernels.cubin", source],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = kernels_of(done.stderr)
    assert kernels, "ptxas named no kernel"
    for name, cost in kernels.items():
        assert cost["spilled"] == 0, name
        assert cost["registers"] <= MOST_REGISTERS, name


def test_headers_know_no_torch():
    headers = ROOT / "csrc/include/acn"  # the runtime's own are in a folder below
    kernels = [*headers.glob("*.h"), *headers.glob("cuda/*.h"), *(ROOT / "csrc/cuda").iterdir()]
    for path in kernels:
        assert not re.search(r"#include [<\"](ATen|torch|c10)/", path.read_text()), path.name
