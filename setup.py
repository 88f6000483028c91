"""Builds the optional compiled extension, ``acn_kernels._native``; all else is in pyproject.toml.

The extension needs an importable torch and a C++ compiler. Where one is missing or the build
fails, the package is built without it, unless it was asked for: by the command ``build_ext`` or
by ``ACN_KERNELS_EXTENSION=1``. ``ACN_KERNELS_EXTENSION=0`` leaves it out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
SETTING = os.environ.get("ACN_KERNELS_EXTENSION", "")
if SETTING not in ("", "0", "1"):
    sys.exit(f"ACN_KERNELS_EXTENSION is {SETTING!r}; it takes 0, 1 or nothing")
REQUIRED = SETTING == "1" or (SETTING == "" and "build_ext" in sys.argv)

# NaN and inf keep their meaning: no -ffast-math.
MATH_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]


def left_out(reason: object) -> None:
    if REQUIRED:
        sys.exit(f"acn_kernels: the compiled extension cannot be built: {reason}")
    if not {"egg_info", "dist_info"} & set(sys.argv):  # pip asks for those first: say it once
        print(f"acn_kernels: built without the compiled extension: {reason}", file=sys.stderr)


def compiler() -> str:
    return os.environ.get("CXX", "cl" if sys.platform == "win32" else "c++").split()[0]


def flags() -> list[str]:
    if sys.platform == "win32":
        return ["/O2", "/openmp"]
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    # GCC's threads are those of the OpenMP runtime that torch has loaded already: compiled with
    # it but not linked to another one. Clang would want a runtime of its own: one thread there.
    openmp = "-fopenmp-simd" if "clang" in version else "-fopenmp"
    return [*MATH_FLAGS, openmp]


def missing() -> str | None:
    """What the build needs and does not find here."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"torch cannot be imported ({error})"
    return None if shutil.which(compiler()) else f"there is no C++ compiler {compiler()!r}"


def extension() -> dict:
    """The arguments of ``setup`` that build it; none where it is left out."""
    if SETTING == "0":
        return {}
    obstacle = missing()
    if obstacle:
        left_out(obstacle)
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class OptionalBuild(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                left_out(error)
                self.extensions = []

    sources = [
        path
        for folder in ("csrc", "csrc/cpu", "csrc/runtime")
        for path in sorted((ROOT / folder).glob("*.cpp"))
    ]
    native = CppExtension(
        "acn_kernels._native",
        [str(path.relative_to(ROOT)) for path in sources],
        include_dirs=[str(ROOT / "csrc/include")],
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.h"))],
        extra_compile_args={"cxx": flags()},
    )
    return {"ext_modules": [native], "cmdclass": {"build_ext": OptionalBuild}}


setup(**extension())
