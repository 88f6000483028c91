"""The doctor's report is plain data, its table is aligned and its exit status honest."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from acn_kernels import doctor

BACKENDS = {"triton": (False, "no CUDA device"), "native": (False, ""), "torch": (True, "")}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@dataclass
class Cost:
    """Stands in for aot.CompiledCost, so that nothing is compiled here."""

    case: SimpleNamespace
    target: str = "sm_90"
    registers: int = 40
    shared_bytes: int = 2048
    spill_bytes: int = 0
    tensor_core_instructions: tuple[str, ...] = ()
    broken: list[str] = field(default_factory=list)
    error: str | None = None

    def violations(self) -> list[str]:
        return self.broken


@pytest.fixture
def known_state(monkeypatch):
    monkeypatch.setattr(doctor.dispatch, "availability", lambda: BACKENDS)
    monkeypatch.setattr(doctor._extension, "state", lambda: "not built")
    monkeypatch.setattr(doctor, "_package_version", lambda: "1.2.3")
    monkeypatch.setattr(doctor, "_driver_version", lambda: None)


@pytest.fixture
def compiler(monkeypatch):
    """Sets the costs that compile_all gives for kernels named "short" and "a longer name"."""
    aot = pytest.importorskip("acn_kernels.kernels.aot")
    cases = [SimpleNamespace(name="short"), SimpleNamespace(name="a longer name")]
    monkeypatch.setattr(aot, "registered_cases", lambda: cases)

    def give(**second):
        costs = [
            Cost(cases[0], tensor_core_instructions=("HGMMA.64x128x16.F32.BF16",)),
            Cost(cases[1], **second),
        ]
        monkeypatch.setattr(aot, "compile_all", lambda targets, cases: iter(costs))

    return give


def test_the_report_is_plain_data(known_state):
    facts = doctor.report()
    assert json.loads(json.dumps(facts)) == facts
    assert list(facts) == [
        "package", "python", "torch", "triton", "cuda", "driver", "gpus", "extension", "backends",
    ]  # fmt: skip
    assert facts["torch"] == torch.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["extension"] == "not built"
    assert facts["backends"]["triton"] == {"available": False, "reason": "no CUDA device"}
    assert len(facts["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_a_triton_that_does_not_import_is_a_finding(known_state, tmp_path, monkeypatch, capsys):
    (tmp_path / "triton.py").write_text("raise ImportError('libtriton.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert doctor.main() == 0
    assert "does not import (libtriton.so: no such file)" in capsys.readouterr().out


def test_the_report_asks_dispatch_about_every_backend():
    backends = doctor.report()["backends"]
    assert set(backends) == {"triton", "native", "torch"}
    assert backends["torch"]["available"] is True
    for backend in backends.values():
        assert backend["available"] or backend["reason"]


def test_values_are_aligned(known_state, capsys):
    assert doctor.main(None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "backend triton  not available: no CUDA device" in lines
    assert "backend native  not available" in lines
    assert "backend torch   available" in lines
    assert "acn_kernels     1.2.3" in lines
    assert {line[14:16] for line in lines} == {"  "}


def test_json_is_one_document(known_state, capsys):
    assert doctor.main(None, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == doctor.report()


def test_missing_triton_and_a_gpu_are_reported(known_state, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name)
    )
    gpu = {"name": "NVIDIA H200", "capability": "9.0", "memory_bytes": 141 * 2**30}
    monkeypatch.setattr(doctor, "_gpus", lambda: [gpu])
    doctor.main(None)
    out = capsys.readouterr().out
    assert "triton          not installed" in out
    assert "gpu 0           NVIDIA H200, capability 9.0, 141 GiB" in out


def test_kernel_rows_are_aligned_and_sound(known_state, compiler, capsys):
    compiler()
    assert doctor.main(["sm_90"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "kernel         target  registers  shared B  spill B  tensor core               verdict",
        "short           sm_90         40      2048        0  HGMMA.64x128x16.F32.BF16  ok",
        "a longer name   sm_90         40      2048        0  -                         ok",
        "2 checked, 0 not ok",
    ]


def test_a_broken_bound_is_shown_and_returned(known_state, compiler, capsys):
    compiler(spill_bytes=192, broken=["192 spill bytes > 0", "no tensor-core instruction"])
    assert doctor.main(["sm_90"]) == 1
    row, summary = capsys.readouterr().out.splitlines()[-2:]
    assert row.endswith("-                         192 spill bytes > 0; no tensor-core instruction")
    assert summary == "2 checked, 1 not ok"


def test_a_kernel_that_does_not_compile_takes_one_row(known_state, compiler, capsys):
    compiler(error="line 1\n  line 2", broken=["does not compile: line 1\n  line 2"])
    assert doctor.main(["sm_90"]) == 1
    row = capsys.readouterr().out.splitlines()[-2]
    assert row.split() == [
        "a", "longer", "name", "sm_90", "-", "-", "-", "-",
        "does", "not", "compile:", "line", "1", "line", "2",
    ]  # fmt: skip


def test_kernel_costs_in_json(known_state, compiler, capsys):
    compiler(broken=["300 registers > 255"], registers=300)
    assert doctor.main(["sm_90"], as_json=True) == 1
    first, second = json.loads(capsys.readouterr().out)["kernels"]
    assert first == {
        "kernel": "short",
        "target": "sm_90",
        "registers": 40,
        "shared_bytes": 2048,
        "spill_bytes": 0,
        "tensor_core_instructions": ["HGMMA.64x128x16.F32.BF16"],
        "violations": [],
    }
    assert second["violations"] == ["300 registers > 255"]


@needs_triton
@pytest.mark.parametrize("as_json", [False, True])
def test_the_interpreter_cannot_compile_and_says_so(known_state, monkeypatch, capsys, as_json):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert doctor.main(["sm_90"], as_json) == 1
    out = capsys.readouterr().out
    assert "TRITON_INTERPRET" in (json.loads(out)["kernels_error"] if as_json else out)


@needs_triton
def test_an_unknown_target_is_refused(known_state, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from acn_kernels.kernels import aot

    monkeypatch.setattr(aot, "registered_cases", list)
    with pytest.raises(ValueError, match="target is 'sm_70'; it takes one of sm_80"):
        doctor.main(["sm_70"])


def test_importing_the_doctor_does_not_import_triton():
    # torch itself may import Triton where it finds a GPU; without one it does not.
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import acn_kernels.doctor; "
        "sys.exit(('triton' in sys.modules) != before)"
    )
    root = os.path.dirname(os.path.dirname(__file__))
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def fake_tool(tmp_path, monkeypatch, script):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(tool))


def test_the_driver_is_asked_of_nvidia_smi(tmp_path, monkeypatch):
    fake_tool(tmp_path, monkeypatch, "printf '580.65.06\\n580.65.06\\n'")
    assert doctor._driver_version() == "580.65.06"


def test_a_failing_nvidia_smi_is_reported_not_hidden(tmp_path, monkeypatch):
    fake_tool(tmp_path, monkeypatch, "echo 'driver/library mismatch' >&2; exit 18")
    assert doctor._driver_version() == "unknown (driver/library mismatch)"


def test_no_nvidia_smi_means_no_driver(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor._driver_version() is None


def test_the_version_of_a_checkout_comes_from_the_package(monkeypatch):
    import acn_kernels

    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    monkeypatch.setattr(acn_kernels, "__version__", "0.0.test", raising=False)
    assert doctor._package_version() == "0.0.test"
