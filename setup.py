"""Builds the optional compiled extension, ``acn_kernels._native``; all else is in pyproject.toml.

The extension needs an importable torch and a C++ compiler; its CUDA kernels need nvcc of the CUDA
version that torch was built for. Where something is missing or the build fails, the package is
built without the extension, unless it was asked for by name. What the variables say:

ACN_KERNELS_EXTENSION  0: none. 1: the build fails without it. The command ``build_ext`` means 1.
ACN_KERNELS_CUDA       cpu: no CUDA kernels. 13.0: with them, for this version or not at all; both
                       mean 1 above and add what the wheel was built for to its version. Unset:
                       with them where torch has CUDA and its nvcc is found.
CUDA_HOME              the CUDA toolkit; else the registry's nvcc package, else nvcc on the PATH.
TORCH_CUDA_ARCH_LIST   the GPUs, as PyTorch reads it: "8.0;9.0+PTX".
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
SOURCES = runpy.run_path(str(ROOT / "acn_kernels/_sources.py"))
SETTING = os.environ.get("ACN_KERNELS_EXTENSION", "")
CUDA = os.environ.get("ACN_KERNELS_CUDA", "")
if SETTING not in ("", "0", "1"):
    sys.exit(f"ACN_KERNELS_EXTENSION is {SETTING!r}; it takes 0, 1 or nothing")
if not re.fullmatch(r"|cpu|\d+\.\d+", CUDA):
    sys.exit(f"ACN_KERNELS_CUDA is {CUDA!r}; it takes cpu, a version such as 13.0, or nothing")
if CUDA and SETTING == "0":
    sys.exit(f"ACN_KERNELS_CUDA={CUDA} asks for what ACN_KERNELS_EXTENSION=0 leaves out")
REQUIRED = SETTING == "1" or CUDA != "" or (SETTING == "" and "build_ext" in sys.argv)

# As in CMakeLists.txt: left to itself, each torch takes the standard of its own headers.
STANDARD = "-std=c++20"
# NaN and inf keep their meaning: no -ffast-math.
MATH_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]
NVCC_FLAGS = [STANDARD, "-O3", "-Xcompiler=-fvisibility=hidden"]


class Missing(Exception):
    """Something that the build needs is not here."""


def left_out(reason: object) -> None:
    if REQUIRED:
        sys.exit(f"acn_kernels: the compiled extension cannot be built: {reason}")
    if not {"egg_info", "dist_info"} & set(sys.argv):  # pip asks for those first: say it once
        print(f"acn_kernels: built without the compiled extension: {reason}", file=sys.stderr)


def compiler() -> str:
    return os.environ.get("CXX", "cl" if sys.platform == "win32" else "c++").split()[0]


def cxx_flags() -> list[str]:
    if sys.platform == "win32":
        return [STANDARD.replace("-std=", "/std:"), "/O2", "/openmp"]
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    # GCC's threads are those of the OpenMP runtime that torch has loaded already: compiled with
    # it but not linked to another one. Clang would want a runtime of its own: one thread there.
    openmp = "-fopenmp-simd" if "clang" in version else "-fopenmp"
    return [STANDARD, *MATH_FLAGS, openmp]


def toolkits(cuda: str) -> list[Path]:
    """Where the nvcc of this version may be, best first; the first of them that has one counts."""
    if os.environ.get("CUDA_HOME"):
        return [Path(os.environ["CUDA_HOME"])]
    nvidia = importlib.util.find_spec("nvidia")
    package = f"cu{cuda.split('.')[0]}"
    found = [Path(base) / package for base in (nvidia.submodule_search_locations if nvidia else ())]
    if shutil.which("nvcc"):
        # What stands on the PATH may be a link or a script: nvcc itself knows where it lives.
        says = subprocess.run(
            ["nvcc", "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
        ).stderr
        top = re.search(r"^#\$ TOP=(.+)$", says, re.MULTILINE)
        found += [Path(top[1])] if top else []
    return found


def toolkit(cuda: str) -> Path:
    """The toolkit of version ``cuda``; raises Missing."""
    places = toolkits(cuda)
    home = next((place.resolve() for place in places if (place / "bin/nvcc").exists()), None)
    if home is None:
        where = f"looked in {', '.join(map(str, places))}" if places else "CUDA_HOME names one"
        raise Missing(f"there is no nvcc of CUDA {cuda}; {where}")
    says = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", says)
    if not release or release[1] != cuda:
        version = release[1] if release else "unknown"
        raise Missing(f"{home} is CUDA {version}; torch and the extension take {cuda}")
    if not (home / "include/cuda_runtime_api.h").exists():
        raise Missing(f"{home} has no headers of the CUDA runtime")
    runtime_library(home, cuda.split(".")[0])
    return home


def cuda_home(torch) -> Path | None:
    """The toolkit to compile the CUDA kernels with; None where they are left out."""
    if CUDA == "cpu":
        return None
    if CUDA and torch.version.cuda != CUDA:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise Missing(f"torch {torch.__version__} is built for {built}, not for CUDA {CUDA}")
    if not torch.version.cuda or sys.platform == "win32":
        return None
    try:
        return toolkit(torch.version.cuda)
    except Missing as reason:
        if CUDA:
            raise
        print(f"acn_kernels: built without CUDA kernels: {reason}", file=sys.stderr)
        return None


def architectures(cuda: str) -> str:
    """Where nobody names them: data-centre GPUs (a binary runs on later minor versions too: 8.6
    and 8.9 take 8.0's), and PTX for whatever comes after. CUDA 12.8 is the first to know 10.0."""
    blackwell = tuple(map(int, cuda.split("."))) >= (12, 8)
    return "8.0;9.0;10.0+PTX" if blackwell else "8.0;9.0+PTX"


def runtime_library(home: Path, major: str) -> Path:
    """The folder of the shared libcudart. At run time torch has loaded its own: no rpath."""
    name = f"libcudart.so.{major}"
    for folder in ("lib64", "lib"):
        if (home / folder / name).exists():
            return home / folder
    raise Missing(f"{home} has no {name}")


def native_extension(torch, home: Path | None):
    cuda = torch.version.cuda if home else "cpu"
    if home:
        os.environ["CUDA_HOME"] = str(home)  # read when cpp_extension is imported
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(cuda)
    from torch.utils.cpp_extension import CppExtension

    files = SOURCES["files_of"](CSRC, cuda=home is not None)
    headers = [path for path in files if path.suffix in (".h", ".cuh")]
    define = f"-DACN_CUDA={cuda}"
    options = {"extra_compile_args": {"cxx": [*cxx_flags(), define]}}
    include = [str(CSRC / "include")]
    if home:
        major = cuda.split(".")[0]
        options["extra_compile_args"]["cxx"].append("-DACN_WITH_CUDA")
        options["extra_compile_args"]["nvcc"] = NVCC_FLAGS
        options["libraries"] = ["torch_cuda", "c10_cuda"]
        options["library_dirs"] = [str(runtime_library(home, major))]
        options["extra_link_args"] = [f"-l:libcudart.so.{major}"]
        include.append(str(home / "include"))
    return CppExtension(
        "acn_kernels._native",
        [str(path.relative_to(ROOT)) for path in files if path not in headers],
        include_dirs=include,
        depends=[str(path.relative_to(ROOT)) for path in headers],
        **options,
    )


def write_digest(folder: Path, cuda: bool) -> Path:
    """A source file with the words by which acn_kernels/_extension.py knows, in a source tree,
    what the extension was built from. In a file of its own: it changes with every other one."""
    path = folder / "acn_sources.cpp"
    words = f"acn_kernels built from sources {SOURCES['digest_of'](CSRC, cuda)};"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(f'extern const char acn_sources[];\nconst char acn_sources[] = "{words}";\n')
    return path


class Wheel(bdist_wheel):
    """A wheel is for one platform only if the extension is in it."""

    def run_command(self, command: str) -> None:
        super().run_command(command)
        if command == "build" and not self.distribution.ext_modules:
            self.root_is_pure = True


def versioned(torch, home: Path | None) -> type[egg_info]:
    """The command that says in the version what was built: "+cu130torch2.11", "+cputorch2.13"."""
    cuda = f"cu{torch.version.cuda.replace('.', '')}" if home else "cpu"
    local = f"+{cuda}torch{'.'.join(torch.__version__.split('.')[:2])}"

    class Version(egg_info):
        def finalize_options(self) -> None:
            self.tag_build = local
            super().finalize_options()

    return Version


def arguments() -> dict:
    """The arguments of ``setup``."""
    pure = {"cmdclass": {"bdist_wheel": Wheel}}
    if SETTING == "0":
        return pure
    try:
        try:
            import torch
        except ImportError as error:
            raise Missing(f"torch cannot be imported ({error})") from error
        if not shutil.which(compiler()):
            raise Missing(f"there is no C++ compiler {compiler()!r}")
        home = cuda_home(torch)
        native = native_extension(torch, home)
    except Missing as reason:
        left_out(reason)
        return pure
    from torch.utils.cpp_extension import BuildExtension

    class OptionalBuild(BuildExtension):
        def run(self) -> None:
            try:
                for extension in self.extensions:
                    digest = write_digest(Path(self.build_temp), cuda=home is not None)
                    extension.sources.append(str(digest))
                super().run()
            except Exception as error:
                left_out(error)
                for extension in self.extensions:  # one of an earlier build would be taken for it
                    Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
                self.extensions = self.distribution.ext_modules = []

    commands = {"bdist_wheel": Wheel, "build_ext": OptionalBuild}
    if CUDA:
        commands["egg_info"] = versioned(torch, home)
    return {"ext_modules": [native], "cmdclass": commands}


setup(**arguments())
