"""The CUDA kernels compiled for the CPU, where a header plays the GPU, and called by pointers."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from ctypes import POINTER, c_bool, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
LAUNCH = re.compile(r"(\w+(?:<[^<>]*>)?)\s*<<<(.*?)>>>\((.*?)\);", re.DOTALL)
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
CRITERIA = {"entropy": 0, "probability": 1, "margin": 2}
NORMS = {"none": 0, "layer": 1, "rms": 2}

ENTRIES = """
#include "acn/cuda/accumulate_norm.h"
#include "acn/cuda/bias_gelu.h"
#include "acn/cuda/bias_norm.h"
#include "acn/cuda/compact.h"
#include "acn/cuda/exit_head.h"
#include "acn/cuda/join.h"
#include "acn/cuda/switch.h"
using namespace acn::cuda;
extern "C" {
int run_accumulate_norm(const AccumulateNorm* a) { return accumulate_norm(*a, nullptr); }
int run_bias_gelu(const BiasGelu* a) { return bias_gelu(*a, nullptr); }
int run_bias_norm(const BiasNorm* a) { return bias_norm(*a, nullptr); }
int run_join(const Join* a) { return join(*a, nullptr); }
int run_exit_head(const ExitHead* a) { return exit_head(*a, nullptr); }
int run_exit_pool(const ExitHead* a, void* pooled) { return exit_pool(*a, pooled, nullptr); }
int run_exit_decision(const ExitHead* a, const void* logits) {
  return exit_decision(*a, logits, nullptr);
}
int run_compact(const Compaction* a) { return compact(*a, nullptr); }
int run_places(const Places* a) { return compaction_places(*a, nullptr); }
int run_switch(const int32_t* count, uint32_t* value) {
  return set_switch(count, reinterpret_cast<ConditionalHandle>(value), nullptr);
}
}
"""


def _structure(name: str, **fields) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# The structures of csrc/include/acn, field by field.
Rows = _structure("Rows", data=c_void_p, stride=c_int64, dtype=c_int)
OutRows = _structure("OutRows", data=c_void_p, dtype=c_int)
Vector = _structure("Vector", data=c_void_p, dtype=c_int)
RowMap = _structure("RowMap", place=c_void_p, tokens=c_int64, kept=c_int64)
Tokens = _structure("Tokens", data=c_void_p, sample_stride=c_int64, token_stride=c_int64)
AccumulateNorm = _structure(
    "AccumulateNorm", rows=c_int64, width=c_int64, x=Rows, y=c_void_p, y_rows=RowMap,
    first=c_bool, scale=c_void_p, alpha=c_float, h=OutRows, weight=Vector, bias=Vector,
    eps=c_float, norm=c_int,
)  # fmt: skip
BiasGelu = _structure(
    "BiasGelu", samples=c_int64, tokens=c_int64, width=c_int64, z=OutRows, bias=Vector
)
BiasNorm = _structure(
    "BiasNorm", samples=c_int64, tokens=c_int64, width=c_int64, z=OutRows, token_bias=Vector,
    weight=Vector, bias=Vector, eps=c_float,
)  # fmt: skip
Join = _structure(
    "Join", rows=c_int64, width=c_int64, xs=POINTER(Rows), terms=c_int64, scales=c_void_p,
    y=c_void_p, out=OutRows, mean=c_void_p, rstd=c_void_p, weight=Vector, bias=Vector,
    eps=c_float, norm=c_int,
)  # fmt: skip
ExitHead = _structure(
    "ExitHead", samples=c_int64, tokens=c_int64, width=c_int64, classes=c_int64, dtype=c_int,
    x=Tokens, y=Tokens, scale=c_void_p, norm_weight=Vector, norm_bias=Vector, eps=c_float,
    norm=c_int, weight=c_void_p, bias=c_void_p, criterion=c_int, threshold=c_float,
    logits=c_void_p, certainty=c_void_p, stays=c_void_p, live=c_void_p, sample=c_void_p,
    depth=c_void_p, stop=c_int64,
)  # fmt: skip
Places = _structure(
    "Places", samples=c_int64, stays=c_void_p, places=c_void_p, count=c_void_p, source=c_void_p,
    to=c_void_p, kept=c_int64,
)  # fmt: skip
Compaction = _structure(
    "Compaction", samples=c_int64, kept=c_int64, places=c_void_p, source=c_void_p,
    stride=c_int64, bytes=c_int64, to=c_void_p,
)  # fmt: skip


def address(x: Tensor | None) -> int | None:
    return None if x is None or x.numel() == 0 else x.data_ptr()


def rows(x: Tensor) -> Rows:
    assert x.stride(1) == 1
    return Rows(x.data_ptr(), x.stride(0), DTYPES[x.dtype])


def out_rows(x: Tensor) -> OutRows:
    return OutRows(x.data_ptr(), DTYPES[x.dtype])


def vector(x: Tensor | None) -> Vector:
    return Vector() if x is None else Vector(x.data_ptr(), DTYPES[x.dtype])


def headers() -> Path | None:
    """The include folder of the CUDA toolkit; None where there is none."""
    if shutil.which("nvcc") is None:
        return None
    says = subprocess.run(
        ["nvcc", "--dryrun", "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True
    ).stderr
    top = re.search(r"^#\$ TOP=(.+)$", says, re.MULTILINE)
    return Path(top[1]).resolve() / "include" if top else None


def build(folder: Path) -> ctypes.CDLL:
    """The library of all CUDA sources, for this processor."""
    (folder / "entries.cpp").write_text(ENTRIES)
    for source in (ROOT / "csrc/cuda").glob("*.cu"):
        code, count = LAUNCH.subn(
            r"acn_emulation::launch({\2}, [=] { \1(\3); });", source.read_text()
        )
        assert count == source.read_text().count("<<<") > 0, source.name
        (folder / f"{source.stem}.cpp").write_text(code)
    library = folder / "kernels.so"
    command = [
        "g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-w", "-include", "cuda_on_cpu.h",
        f"-I{Path(__file__).parent}", f"-I{ROOT}/csrc/include", f"-I{ROOT}/csrc/cuda",
        f"-I{headers()}", "-o", str(library),
    ]  # fmt: skip
    done = subprocess.run(
        [*command, *map(str, sorted(folder.glob("*.cpp")))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))
