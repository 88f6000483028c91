"""The package as an installed thing: what it needs, what it does without."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import acn_kernels
from acn_kernels import _extension

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


def beside(tmp_path, content: bytes) -> subprocess.CompletedProcess:
    """Imports the package with a file of this content in the place of the extension."""
    (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(content)
    return run(
        f"""
import acn_kernels.stack  # find the package, then look at the stand-in first
import acn_kernels as acn, importlib, sys, torch
acn.__path__.insert(0, {str(tmp_path)!r})
sys.modules.pop("acn_kernels._native", None)
from acn_kernels import _extension
importlib.reload(_extension)
print(_extension.module(), _extension.state())
stack = acn.FusedACNStack([torch.nn.Linear(4, 4)], torch.nn.LayerNorm(4))
stack(torch.randn(2, 4)).sum().backward()
"""
    )


MARK = b"\0acn_kernels built for torch %s, cuda %s;\0"
HERE = ".".join(torch.__version__.split(".")[:2])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (MARK % (b"1.0", b"cpu"), "built for torch 1.0, this is torch "),
        (MARK % (b"2.99", b"13.0"), "built for torch 2.99 and CUDA 13.0, this is torch "),
        (MARK % (HERE.encode(), b"9.9"), f"built for torch {HERE} and CUDA 9.9, this is torch "),
        (b"\x7fELF of an earlier release", "it does not say for which torch it was built"),
        (b"", "it does not say for which torch it was built"),
        (MARK % (HERE.encode(), b"cpu"), "it does not load with torch"),  # damaged
    ],
    ids=["torch", "torch-and-cuda", "cuda", "unmarked", "empty", "damaged"],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, content, reason):
    """From its own words, before any of it is loaded: none of these files could be."""
    done = beside(tmp_path, content)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"None refused: {reason}")
    assert sum("refused" in line for line in done.stderr.splitlines()) == 1


def test_an_extension_without_cuda_kernels_works_with_any_build_of_its_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    assert _extension._obstacle(_extension.BuiltFor(HERE, "cpu")) is None
    assert _extension._obstacle(_extension.BuiltFor(HERE, "12.9")) is None
    assert "for CUDA 12.9" in _extension._obstacle(_extension.BuiltFor(HERE, "13.0"))


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
