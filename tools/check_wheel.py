"""Checks a built wheel: what it says it is, what it holds, and that it runs.

    python tools/check_wheel.py WHEEL [--with PYTHON] [--beside PYTHON ...]

Reads the file name, the metadata, the extension's dependencies and its GPU architectures; then
installs the wheel into a fresh environment that sees the torch of PYTHON and runs a stack forward
and backward there. Beside the torch of each other PYTHON the extension must be refused in one line
and the stack run all the same. Needs readelf, and for CUDA wheels cuobjdump: in CUDA_HOME, on the
PATH or with Triton. TORCH_CUDA_ARCH_LIST tells the architectures to expect where the wheel was
built for others than the default ones.
"""

from __future__ import annotations

import argparse
import email.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

sys.dont_write_bytecode = True
MOST_MEGABYTES = {"none": 1, "cpu": 3, "cuda": 20}
# The libraries of torch and CUDA come from the environment; inside a wheel they would be second
# copies with a state of their own.
FOREIGN = re.compile(r"lib(torch|c10|cud|cublas|nvrtc|nccl|gomp|stdc)[^/]*\.so|\.a$")
MARK = re.compile(rb"acn_kernels built for torch (\d+\.\d+), cuda (cpu|\d+\.\d+);")

STEP = """
import json, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch, acn_kernels as acn
    from acn_kernels import _extension
torch.manual_seed(0)
layers = [torch.nn.Sequential(torch.nn.LayerNorm(32), torch.nn.Linear(32, 32)) for _ in range(3)]
stack = acn.FusedACNStack(layers, norm=torch.nn.LayerNorm(32))
x = torch.randn(4, 5, 32, requires_grad=True)
stack(x).square().mean().backward()
terms = [x]
for layer in layers:
    terms.append(layer(terms[-1]))
expected = torch.autograd.grad(stack.norm(sum(terms)).square().mean(), x)[0]
torch.testing.assert_close(x.grad, expected)
try:
    torch.ops.acn_cuda.compact(torch.ones(2, dtype=torch.bool), [torch.ones(2)], None)
    said_no = ""
except (RuntimeError, ValueError) as error:
    said_no = str(error).splitlines()[0]
print(json.dumps({
    "file": acn.__file__, "torch": torch.__version__, "state": _extension.state(),
    "loaded": _extension.module() is not None, "cuda kernels": _extension.has_cuda_kernels(),
    "said no": said_no, "said": [str(w.message) for w in said if "acn_kernels" in str(w.message)],
}))
"""


class Name(NamedTuple):
    """The parts of a wheel's file name."""

    version: str
    local: str
    python: str
    platform: str

    @classmethod
    def of(cls, path: Path) -> Name:
        parts = re.fullmatch(
            r"acn_kernels-([0-9.]+)(?:\+([a-z0-9.]+))?-(\w+)-\w+-(\w+)\.whl", path.name
        )
        if not parts:
            raise SystemExit(f"{path.name} is no wheel of acn_kernels")
        return cls(parts[1], parts[2] or "", parts[3], parts[4])


class Report:
    """Prints each check as it is made and remembers whether one failed."""

    failed = 0

    def check(self, holds: object, what: str) -> None:
        self.failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'}  {what}", flush=True)


def output(*command: object) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_metadata(report: Report, wheel: zipfile.ZipFile, name: Name) -> None:
    def headers(file: str):
        found = [n for n in wheel.namelist() if n.endswith(f".dist-info/{file}")]
        report.check(len(found) == 1, f"{file} once in the wheel: {', '.join(found) or 'nowhere'}")
        return email.parser.Parser().parsestr(wheel.read(found[0]).decode() if found else "")

    metadata, about = headers("METADATA"), headers("WHEEL")
    version = f"{name.version}+{name.local}" if name.local else name.version
    report.check(metadata["Version"] == version, f"version {metadata['Version']} in name and data")
    tag = "-".join(wheel.filename.removesuffix(".whl").split("-")[-3:])
    report.check(about["Tag"] == tag, f"tag {about['Tag']} in name and data")
    pure = about["Root-Is-Purelib"] == "true"
    report.check(pure == (name.platform == "any"), f"Root-Is-Purelib: {about['Root-Is-Purelib']}")
    pinned = [r for r in metadata.get_all("Requires-Dist", []) if re.match(r"torch *==", r)]
    report.check(not pinned, "does not make pip change the torch that is there")


def check_files(report: Report, wheel: zipfile.ZipFile, compiled: bool) -> str | None:
    """The extension's place in the wheel."""
    names = wheel.namelist()
    stray = [n for n in names if not re.match(r"acn_kernels(-[^/]+\.dist-info)?/", n)]
    report.check(not stray, f"{len(names)} files, none outside the package {stray or ''}")
    foreign = [n for n in names if FOREIGN.search(n)]
    report.check(not foreign, f"no library of torch or CUDA inside {foreign or ''}")
    extensions = [n for n in names if re.search(r"\.(so|pyd|dll)$", n)]
    report.check(len(extensions) == compiled, f"compiled: {', '.join(extensions) or 'nothing'}")
    return extensions[0] if extensions else None


def check_library(report: Report, library: Path, name: Name) -> str:
    """Checks the extension's own words, its dependencies and symbols; returns its CUDA version."""
    mark = MARK.search(library.read_bytes())
    report.check(mark, "the extension says what it was built for")
    torch, cuda = (part.decode() for part in mark.groups()) if mark else ("", "cpu")
    local = f"{'cpu' if cuda == 'cpu' else 'cu' + cuda.replace('.', '')}torch{torch}"
    report.check(local == name.local, f"built for torch {torch}, cuda {cuda}: +{local} in the name")
    python = name.python.replace("cp", "cpython-")
    report.check(f".{python}-" in library.name, f"built for {name.python}")

    dynamic = output("readelf", "--wide", "--dynamic", library)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    wanted = {"libc10.so", "libtorch_cpu.so"}
    wanted |= {"libc10_cuda.so", f"libcudart.so.{cuda.split('.')[0]}"} if cuda != "cpu" else set()
    report.check(wanted <= set(needed), f"needs {', '.join(needed)}")
    strange = [n for n in needed if "cud" in n] if cuda == "cpu" else []
    report.check(not strange, f"needs CUDA only where it has kernels for it {strange or ''}")
    paths = re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.+)\]", dynamic)
    report.check(not paths, f"looks for no library in a place of the build machine {paths or ''}")
    symbols = output("readelf", "--wide", "--dyn-syms", library)
    undefined = set(re.findall(r" UND (\w+)", symbols))
    theirs = {"at::": "_ZN2at", "c10::": "_ZN3c10"}
    if cuda != "cpu":
        theirs["cudart"] = "__cudaRegister"
    for which, prefix in theirs.items():
        report.check(
            any(symbol.startswith(prefix) for symbol in undefined),
            f"takes {which} from a shared library",
        )
    return cuda


def find_cuobjdump(python: str | None) -> str | None:
    places = [Path(os.environ[v]) / "bin" for v in ("CUDA_HOME",) if os.environ.get(v)]
    if python:
        for site in Path(python).parent.parent.glob("lib/python*/site-packages"):
            places += [site / "triton/backends/nvidia/bin", *site.glob("nvidia/cu*/bin")]
    found = [str(p / "cuobjdump") for p in places if (p / "cuobjdump").exists()]
    return found[0] if found else shutil.which("cuobjdump")


def default_architectures(cuda: str) -> str:
    """Those that setup.py takes where nobody names any."""
    blackwell = tuple(map(int, cuda.split("."))) >= (12, 8)
    return "8.0;9.0;10.0+PTX" if blackwell else "8.0;9.0+PTX"


def check_architectures(report: Report, library: Path, python: str | None, cuda: str) -> None:
    tool = find_cuobjdump(python)
    if tool is None:
        return report.check(False, "there is no cuobjdump in CUDA_HOME, on the PATH or with Triton")
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or default_architectures(cuda)
    numbers = [(a.split("+")[0].replace(".", ""), "+PTX" in a) for a in re.split(r"[; ]+", asked)]
    for kind, option, expected in (
        ("machine code", "--list-elf", {number for number, _ in numbers}),
        ("PTX", "--list-ptx", {number for number, ptx in numbers if ptx}),
    ):
        lines = output(tool, option, library).splitlines()
        found = re.findall(r"\.sm_(\w+?)\.", "\n".join(lines))
        counts = ", ".join(f"sm_{a} in {found.count(a)} files" for a in sorted(set(found)))
        report.check(set(found) == expected, f"{kind}: {counts or 'none'}")


def run_fresh(path: Path, python: str) -> dict:
    """Installs the wheel into a new environment that sees torch where ``python`` has it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        torch_home = output(*command).strip()
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        if f"/python{version}/" not in torch_home:
            raise SystemExit(f"{python} is no Python {version}, which runs this script")
        venv.create(folder, with_pip=True)
        fresh = Path(folder) / "bin/python"
        pip = [fresh, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        output(*pip, "--no-deps", "--no-index", path.resolve())
        own = Path(output(fresh, *command[1:]).strip())
        (own / "torch_from_elsewhere.pth").write_text(torch_home + "\n")
        done = subprocess.run([fresh, "-I", "-c", STEP], capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            return {"failed": done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]}
        facts = json.loads(done.stdout.splitlines()[-1])
        facts["own"] = Path(facts["file"]).resolve().is_relative_to(own.resolve())
        return facts


def check_run(report: Report, facts: dict, cuda: str) -> None:
    if "failed" in facts:
        return report.check(False, f"does not run: {facts['failed']}")
    report.check(facts["own"], f"forward and backward beside torch {facts['torch']}")
    state = f"extension {facts['state']}"
    report.check(facts["loaded"] == (cuda != "none") and not facts["said"], state)
    report.check(facts["cuda kernels"] == (cuda not in ("none", "cpu")), "CUDA kernels as built")
    # Without a GPU that is as far as a call gets: to the check of its arguments.
    expected = "is on cpu" if facts["cuda kernels"] else "the extension has no CUDA kernels"
    report.check(
        expected in facts["said no"], f"a CUDA kernel asked for a CPU tensor: {facts['said no']}"
    )


def check_fallback(report: Report, facts: dict) -> None:
    if "failed" in facts:
        return report.check(False, f"does not run: {facts['failed']}")
    report.check(facts["own"], f"forward and backward beside torch {facts['torch']} all the same")
    said = facts["said"]
    one_line = len(said) == 1 and "\n" not in said[0] and facts["torch"] in said[0]
    report.check(not facts["loaded"] and one_line, f"one line: {said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--with", dest="python", help="runs the wheel with the torch of this one")
    parser.add_argument(
        "--beside", action="append", default=[], help="has a torch that must be refused"
    )
    given = parser.parse_args()
    report, name, cuda = Report(), Name.of(given.wheel), "none"
    try:
        opened = zipfile.ZipFile(given.wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{given.wheel} cannot be read: {error}") from error
    print(given.wheel.name)
    with opened as wheel, tempfile.TemporaryDirectory() as folder:
        check_metadata(report, wheel, name)
        extension = check_files(report, wheel, name.platform != "any")
        if extension:
            library = Path(wheel.extract(extension, folder))
            cuda = check_library(report, library, name)
            if cuda != "cpu":
                check_architectures(report, library, given.python, cuda)
    size = given.wheel.stat().st_size / 1e6
    most = MOST_MEGABYTES.get(cuda, MOST_MEGABYTES["cuda"])
    report.check(size <= most, f"{size:.2f} MB, at most {most}")
    if given.python:
        check_run(report, run_fresh(given.wheel, given.python), cuda)
    for python in given.beside:
        check_fallback(report, run_fresh(given.wheel, python))
    print(f"{report.failed} failed" if report.failed else "all checks passed")
    return min(report.failed, 1)


if __name__ == "__main__":
    sys.exit(main())
