"""Ahead-of-time compilation: what each kernel costs on a target, read without owning the GPU.

Triton compiles for any NVIDIA target on any machine. Registers, local memory, shared memory and
tensor-core instructions are properties of the machine code, so a bound on them can be checked
wherever the package is developed, for every configuration that the launchers use.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from acn_kernels.kernels.recorder import Launch

CAPABILITIES = {"sm_80": 80, "sm_89": 89, "sm_90": 90, "sm_100": 100}
TARGETS = tuple(CAPABILITIES)
# The most that a block may ask for.
SHARED_BYTES = {
    "sm_80": 163 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
}

_BOUNDS = ("tensor_cores", "max_shared_bytes", "max_spill_bytes")
_DIVISIBLE_BY_16 = [["tt.divisibility", 16]]
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# HMMA, IMMA, DMMA, ... (sm_80), HGMMA, QGMMA, ... (sm_90), UTCHMMA, UTCQMMA, ... (sm_100).
_TENSOR_CORE_INSTRUCTION = re.compile(r"\b(?:UTC)?[A-Z]{1,2}MMA(?:\.\w+)*")
# ptxas counts the driver's own kilobyte in a block's static shared memory from sm_90 on; it is
# not taken from what a kernel may ask for.
_DRIVER_SHARED_BYTES = 1024


@dataclass(frozen=True)
class KernelCase:
    """One kernel in one configuration that the launchers really use, and its bounds.

    ``signature`` gives the Triton type of every run-time argument ("*bf16", "i64", "fp32"), or a
    tuple of types for a tuple argument; ``constexprs`` the value of every other argument, which
    includes None for an absent pointer and 1 for an integer that is 1, because a launch
    specialises on both. Pointers are taken to be 16-byte aligned; ``divisible`` names the integer
    arguments that are multiples of 16; ``maxnreg`` is the launch's own cap on registers.

    Bounds: ``max_registers`` and ``max_spill_bytes`` per thread, ``max_shared_bytes`` per block, or
    what the target has where that is less; ``tensor_cores`` asks for a matrix instruction.
    """

    name: str
    kernel: JITFunction
    signature: dict[str, str | tuple]
    constexprs: dict[str, object]
    num_warps: int
    maxnreg: int | None = None
    num_stages: int = 3  # Triton's default, which the launchers keep
    max_registers: int = 255
    max_spill_bytes: int = 0
    max_shared_bytes: int = 48 * 1024
    tensor_cores: bool = False
    divisible: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CompiledCost:
    """What the machine code of ``case`` takes on ``target``.

    ``registers`` and ``spill_bytes`` (local memory: spilled registers and the rest of the stack
    frame) are per thread, ``shared_bytes`` (static and dynamic) per block.
    ``tensor_core_instructions`` are the distinct ones, sorted. ``error`` says why a kernel did not
    compile; the counts are 0 then.
    """

    case: KernelCase
    target: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    tensor_core_instructions: tuple[str, ...]
    error: str | None = None

    def violations(self) -> list[str]:
        """The broken bounds in words; empty when every bound holds."""
        if self.error is not None:
            return [f"does not compile: {self.error}"]
        case = self.case
        most_shared = min(case.max_shared_bytes, SHARED_BYTES[self.target])
        measured = [
            ("registers", self.registers, case.max_registers),
            ("spill bytes", self.spill_bytes, case.max_spill_bytes),
            ("shared bytes", self.shared_bytes, most_shared),
        ]
        broken = [f"{got} {what} > {bound}" for what, got, bound in measured if got > bound]
        if case.tensor_cores and not self.tensor_core_instructions:
            broken.append("no tensor-core instruction")
        return broken


def registered_cases() -> list[KernelCase]:
    """One case for every launch in :mod:`acn_kernels.kernels.cases`.

    Raises RuntimeError under TRITON_INTERPRET=1, where kernels cannot be compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError(_interpreted("kernels"))
    from acn_kernels.kernels.cases import registered_launches

    return [
        case_of(name, registered.launch, **{k: getattr(registered, k) for k in _BOUNDS})
        for name, registered in registered_launches().items()
    ]


def case_of(name: str, launch: Launch, **bounds) -> KernelCase:
    """The kernel as ``launch`` would have it compiled; ``bounds`` are fields of KernelCase."""
    signature, constexprs, divisible = launch.specialised()
    return KernelCase(
        name,
        launch.kernel,
        signature,
        constexprs,
        launch.num_warps,
        maxnreg=launch.maxnreg,
        num_stages=launch.num_stages,
        divisible=divisible,
        **bounds,
    )


def compile_case(case: KernelCase, target: str) -> CompiledCost:
    """Compiles ``case`` for ``target``, one of TARGETS, and measures the result.

    Raises ValueError for an unknown target or a case that does not describe its kernel's
    arguments, TypeError for a kernel that is no JITFunction, RuntimeError for one decorated under
    TRITON_INTERPRET=1 or when a tool cannot read the binary; Triton's own errors pass through.
    """
    check_target(target)
    source = _source(case)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", CAPABILITIES[target], 32),
        options={
            "num_warps": case.num_warps,
            "num_stages": case.num_stages,
            "maxnreg": case.maxnreg,
        },
    )
    return _measure(case, target, compiled)


def compile_all(
    targets: Sequence[str], cases: Sequence[KernelCase] | None = None, jobs: int | None = None
) -> Iterator[CompiledCost]:
    """Costs of all ``cases`` (default: the registered ones) on all ``targets``, case by case.

    ``jobs`` threads work at a time (default: one per processor). A kernel that does not compile
    gives a CompiledCost with ``error`` set, so that it hides no other. Raises as compile_case
    does for ``targets``, and ValueError for ``jobs`` below 1, at the call.
    """
    if isinstance(targets, str):
        raise TypeError(f"targets is the string {targets!r}; it takes a sequence of targets")
    for target in targets:
        check_target(target)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}; it takes None or an integer of at least 1")
    if cases is None:
        cases = registered_cases()
    work = [(case, target) for case in cases for target in targets]
    return _compile_in_threads(work, jobs or os.cpu_count() or 1)


def check_target(target: str) -> None:
    """Raises ValueError unless ``target`` is one of TARGETS."""
    if target not in CAPABILITIES:
        raise ValueError(f"target is {target!r}; it takes one of {', '.join(TARGETS)}")


def _compile_in_threads(
    work: Sequence[tuple[KernelCase, str]], jobs: int
) -> Iterator[CompiledCost]:
    # Threads rather than processes: LLVM and ptxas run without the GIL, and importing torch and
    # Triton once more takes longer than compiling a dozen kernels.
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda item: _compile_or_explain(*item), work)


def _compile_or_explain(case: KernelCase, target: str) -> CompiledCost:
    try:
        return compile_case(case, target)
    except Exception as error:  # Triton raises errors of many types with no common base
        return CompiledCost(case, target, 0, 0, 0, (), f"{type(error).__name__}: {error}")


def _interpreted(what: str) -> str:
    return (
        f"{what} decorated under TRITON_INTERPRET=1 cannot be compiled: "
        "use a process started without TRITON_INTERPRET"
    )


def _source(case: KernelCase) -> ASTSource:
    """The kernel with the types, constants and alignments that a launch would give it."""
    kernel = case.kernel
    if not isinstance(kernel, JITFunction):
        if type(kernel).__name__ == "InterpretedFunction":
            raise RuntimeError(_interpreted(f"{case.name}: a kernel"))
        raise TypeError(
            f"{case.name}: kernel is of type {type(kernel).__name__}; it takes a "
            "triton.JITFunction (of an autotuned kernel, the function inside)"
        )
    names = kernel.arg_names
    _check_arguments(case, names)
    types = {name: case.signature.get(name, "constexpr") for name in names}
    attributes = {
        path: _DIVISIBLE_BY_16
        for index, name in enumerate(names)
        for path, leaf in _leaves((index,), types[name])
        if leaf.startswith("*") or (name in case.divisible and leaf != "constexpr")
    }
    return ASTSource(kernel, types, dict(case.constexprs), attributes)


def _check_arguments(case: KernelCase, names: Sequence[str]) -> None:
    given = [*case.signature, *case.constexprs]
    wrong = {
        "missing": [name for name in names if name not in given],
        "unknown": [name for name in given if name not in names],
        "both": [name for name in case.signature if name in case.constexprs],
    }
    if any(wrong.values()):
        raise ValueError(
            f"{case.name}: signature and constexprs take each argument of "
            f"{case.kernel.__name__} in exactly one of them; missing: {wrong['missing']}, "
            f"unknown: {wrong['unknown']}, in both: {wrong['both']}"
        )
    if stray := sorted(case.divisible - case.signature.keys()):
        raise ValueError(f"{case.name}: divisible has {stray}; it takes names in the signature")


def _leaves(path: tuple[int, ...], kind: Any) -> Iterator[tuple[tuple[int, ...], str]]:
    """(path, type) of each scalar and pointer; a tuple argument reaches a kernel as its parts."""
    if isinstance(kind, str):
        yield path, kind
        return
    for index, part in enumerate(kind):
        yield from _leaves((*path, index), part)


def _measure(case: KernelCase, target: str, compiled: CompiledKernel) -> CompiledCost:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run_tool("cuobjdump", "-res-usage", cubin)
        # Disassembly takes longer than compilation, and matrix instructions come from PTX's only.
        matrix = "mma" in compiled.asm.get("ptx", "mma")
        code = _run_tool("nvdisasm", "-c", cubin) if matrix else ""
    functions = [tuple(map(int, found)) for found in _RESOURCES.findall(usage)]
    if not functions:
        raise RuntimeError(f"{case.name}: cuobjdump reported no resource usage:\n{usage}")
    registers, stack, static, local = map(max, zip(*functions, strict=True))
    if CAPABILITIES[target] >= 90:
        static = max(0, static - _DRIVER_SHARED_BYTES)
    return CompiledCost(
        case=case,
        target=target,
        registers=registers,
        shared_bytes=compiled.metadata.shared + static,
        spill_bytes=stack + local,
        tensor_core_instructions=tuple(sorted(set(_TENSOR_CORE_INSTRUCTION.findall(code)))),
    )


def _run_tool(name: str, option: str, cubin: Path) -> str:
    """Standard output of one of the CUDA binary tools that Triton ships."""
    path = getattr(triton.knobs.nvidia, name).path
    done = subprocess.run([path, option, str(cubin)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{path} {option} failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout
