"""The package as an installed thing: what it needs, what it does without."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import acn_kernels

ROOT = Path(__file__).parents[1]


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
    )


def test_works_without_triton_and_extension():
    done = run(
        """
import sys
for name in ("triton", "sklearn", "matplotlib", "pytest", "acn_kernels._native"):
    sys.modules[name] = None  # importing it fails from here on
import torch, acn_kernels as acn
stack = acn.FusedACNStack([torch.nn.Linear(4, 4)], torch.nn.LayerNorm(4))
stack(torch.randn(2, 4)).sum().backward()
assert {part.path for part in acn.explain(stack, torch.randn(2, 4))} == {"module", "torch"}
from acn_kernels.dispatch import availability
print({name: available for name, (available, _) in availability().items()})
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'triton': False, 'native': False, 'torch': True}"
    assert "acn_kernels" not in done.stderr


def test_importing_brings_no_heavy_optional_module():
    done = run(
        "import sys, acn_kernels; print([m for m in ('triton.language', 'matplotlib', 'sklearn') "
        "if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_an_extension_for_another_torch_is_refused_in_one_line(tmp_path):
    package = tmp_path / "acn_kernels"
    package.mkdir()
    (package / "_native.py").write_text("torch_version = '1.0.0'\n")
    done = run(
        f"""
import acn_kernels.stack  # find the package, then look at the stand-in first
import acn_kernels, importlib, sys
acn_kernels.__path__.insert(0, {str(package)!r})
sys.modules.pop("acn_kernels._native", None)
from acn_kernels import _extension
importlib.reload(_extension)
print(_extension.module(), _extension.state())
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("None refused: built for torch 1.0.0, this is ")
    assert sum("refused" in line for line in done.stderr.splitlines()) == 1


def test_the_interpreter_setting_is_read_when_kernels_are_defined():
    done = run(
        "from acn_kernels.dispatch import availability; print(availability()['triton'])",
        TRITON_INTERPRET="1",
    )
    assert done.stdout.strip() == "(True, 'interpreted on the CPU')", done.stderr


def test_versions_agree():
    declared = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared[1] == acn_kernels.__version__


def test_typed():
    assert (Path(acn_kernels.__file__).parent / "py.typed").exists()
