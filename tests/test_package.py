"""The package as an installed thing: what it needs, what it does without."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import acn_kernels
from acn_kernels import _extension
from acn_kernels._sources import digest_of

ROOT = Path(__file__).parents[1]


def run(code: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), **environment},
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
        (MARK % (HERE.encode(), b"cpu"), "it does not load with torch"),  # damaged
    ],
    ids=["another torch", "damaged"],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, content, reason):
    """From its own words, before any of it is loaded: neither of these files could be."""
    done = beside(tmp_path, content)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"None refused: {reason}")
    assert sum("refused" in line for line in done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (MARK % (b"2.99", b"13.0"), "built for torch 2.99 and CUDA 13.0, this is torch "),
        (MARK % (HERE.encode(), b"9.9"), f"built for torch {HERE} and CUDA 9.9, this is torch "),
        (b"\x7fELF of an earlier release", "it does not say for which torch it was built"),
        (b"", "it does not say for which torch it was built"),
        (MARK % (HERE.encode(), b"cpu"), None),
    ],
    ids=["torch-and-cuda", "cuda", "unmarked", "empty", "this"],
)
def test_an_extension_says_what_it_was_built_for(tmp_path, content, reason):
    (tmp_path / "_native.so").write_bytes(content)
    obstacle = _extension._obstacle(_extension.built_for(tmp_path / "_native.so"))
    assert obstacle is None if reason is None else obstacle.startswith(reason)


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


def test_sources_are_told_apart(tmp_path):
    csrc = shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    before = {cuda: digest_of(csrc, cuda) for cuda in (False, True)}
    assert before[False] != before[True]
    for program in ("tests/check.h", "tools/options.cpp"):
        (csrc / program).write_text("// another")
    assert before == {cuda: digest_of(csrc, cuda) for cuda in before}
    (csrc / "cuda/join.cu").write_text("// another")
    assert digest_of(csrc, False) == before[False]
    assert digest_of(csrc, True) != before[True]
    (csrc / "cpu/join.cpp").rename(csrc / "cpu/sum.cpp")
    assert digest_of(csrc, False) != before[False]


def test_an_extension_of_other_sources_is_refused_in_one_line(tmp_path):
    """In a source tree alone: without csrc beside it, as in a wheel, it is taken."""
    if _extension.module() is None:
        pytest.skip(f"the compiled extension is {_extension.state()}")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    ignored = shutil.ignore_patterns("*.so", "*.pyc")
    package = shutil.copytree(ROOT / "acn_kernels", tmp_path / "acn_kernels", ignore=ignored)
    library = Path(_extension.module().__file__)
    (package / library.name).symlink_to(library)
    done = run(
        f"""
import importlib, pathlib, shutil, sys, torch
from acn_kernels import FusedACNStack, _extension
csrc = pathlib.Path({str(tmp_path)!r}) / "csrc"
print(_extension.state())
(csrc / "cpu/join.cpp").write_text("// another")
importlib.reload(_extension)
print(_extension.module(), _extension.state())
FusedACNStack([torch.nn.Linear(4, 4)], torch.nn.LayerNorm(4))(torch.randn(2, 4)).sum().backward()
shutil.rmtree(csrc)
print(importlib.reload(_extension).state())
""",
        root=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    first, changed, without = done.stdout.splitlines()
    assert first == without == _extension.state() and first.startswith("loaded")
    assert changed.startswith("None refused: csrc has changed since it was built")
    assert sum("refused" in line for line in done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """What a build reads, in a place of its own."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "Makefile", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copy(ROOT / "constraints.txt", copy)
    for name in ("acn_kernels", "csrc", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    return copy


def setup(tree: Path, *command: object, **environment: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", *command],
        capture_output=True, text=True, cwd=tree, env={"PATH": path, **environment},
    )  # fmt: skip


def test_the_source_archive_has_what_a_build_needs(tree, tmp_path):
    done = setup(tree, "sdist", "--dist-dir", tmp_path, ACN_KERNELS_EXTENSION="0")
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.iterdir()
    assert archive.name == f"acn_kernels-{acn_kernels.__version__}.tar.gz"
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    sources = [p.relative_to(ROOT) for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    package = [p.relative_to(ROOT) for p in (ROOT / "acn_kernels").rglob("*.py")]
    named = ["setup.py", "pyproject.toml", "LICENSE", "constraints.txt", "acn_kernels/py.typed"]
    assert {*map(str, sources + package), *named} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc", ".o"))]


@pytest.mark.parametrize(
    "environment",
    [{"ACN_KERNELS_EXTENSION": "0"}, {"CXX": "false"}],
    ids=["left out", "failed"],
)
def test_a_wheel_without_the_extension_is_for_every_platform(tree, tmp_path, environment):
    build, out = tmp_path / "build", tmp_path / "out"
    done = setup(
        tree, "build", "--build-base", build, "bdist_wheel", "--dist-dir", out, **environment
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.iterdir()
    assert wheel.name == f"acn_kernels-{acn_kernels.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "acn_kernels/stack.py" in names and not [n for n in names if n.endswith(".so")]
    said = "built without the compiled extension" in done.stderr
    assert said == ("CXX" in environment)


def test_a_wheel_says_what_it_was_built_for(tree, tmp_path):
    done = setup(tree, "egg_info", "--egg-base", tmp_path, ACN_KERNELS_CUDA="cpu")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "acn_kernels.egg-info/PKG-INFO").read_text()
    version = re.search(r"^Version: (.+)$", written, re.MULTILINE)[1]
    assert version == f"{acn_kernels.__version__}+cputorch{HERE}"
    assert "Requires-Dist: torch>=" in written


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACN_KERNELS_CUDA": "99.0"}, "not for CUDA 99.0"),
        ({"ACN_KERNELS_CUDA": "cu130"}, "it takes cpu, a version such as 13.0, or nothing"),
        ({"ACN_KERNELS_CUDA": "cpu", "CXX": "no-such-compiler"}, "there is no C++ compiler"),
        ({"ACN_KERNELS_CUDA": "cpu", "ACN_KERNELS_EXTENSION": "0"}, "leaves out"),
        ({"ACN_KERNELS_EXTENSION": "yes"}, "it takes 0, 1 or nothing"),
    ],
    ids=["cuda", "spelling", "compiler", "contradiction", "switch"],
)
def test_a_build_that_cannot_be_what_was_asked_for_stops(tree, tmp_path, environment, message):
    done = setup(tree, "egg_info", "--egg-base", tmp_path, **environment)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def check_wheel(monkeypatch):
    """The script as a module."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # as it does itself
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "tools/check_wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [("12.6", "8.0;9.0+PTX"), ("12.8", "8.0;9.0;10.0+PTX"), ("13.0", "8.0;9.0;10.0+PTX")],
)
def test_a_wheel_is_checked_for_the_architectures_that_setup_takes(
    check_wheel, cuda, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pytest.importorskip("setuptools"), "setup", lambda **_: None)
    monkeypatch.setenv("ACN_KERNELS_EXTENSION", "0")
    monkeypatch.delenv("ACN_KERNELS_CUDA", raising=False)
    assert runpy.run_path(str(ROOT / "setup.py"))["architectures"](cuda) == expected
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(check_wheel, "find_cuobjdump", lambda _: "cuobjdump")
    numbers = re.findall(r"(\d+)\.0", expected)
    lists = {
        "--list-elf": "".join(f"ELF file 1: a.1.sm_{n}0.cubin\n" for n in numbers),
        "--list-ptx": f"PTX file 1: a.1.sm_{numbers[-1]}0.ptx\n",
    }
    monkeypatch.setattr(check_wheel, "output", lambda tool, option, library: lists[option])
    report = check_wheel.Report()
    check_wheel.check_architectures(report, tmp_path, None, cuda)
    assert not report.failed, capsys.readouterr().out


def checked(wheel: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "tools/check_wheel.py", wheel], capture_output=True, text=True
    )


def test_a_wheel_without_its_metadata_fails_the_checks_of_it(tmp_path):
    wheel = tmp_path / "acn_kernels-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("acn_kernels/__init__.py", "")
    done = checked(wheel)
    assert done.returncode == 1 and not done.stderr
    assert "FAIL  METADATA once in the wheel: nowhere" in done.stdout
    assert "ok    compiled: nothing" in done.stdout, "and all others are made"


@pytest.mark.parametrize("there", [True, False])
def test_a_wheel_that_cannot_be_read_is_said_in_one_line(there, tmp_path):
    wheel = tmp_path / "acn_kernels-0.1.0-py3-none-any.whl"
    if there:
        wheel.touch()
    done = checked(wheel)
    assert done.returncode == 1 and not done.stdout
    assert f"{wheel} cannot be read: " in done.stderr and done.stderr.count("\n") == 1


def test_versions_agree():
    declared = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared[1] == acn_kernels.__version__


def test_typed():
    assert (Path(acn_kernels.__file__).parent / "py.typed").exists()
