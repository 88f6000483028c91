"""Counting what machine code asks of memory: the global loads and stores in a kernel's PTX.

A count without running: bytes per thread of every access, times threads, times the grid. It is
exact for a tensor whose tile every thread takes a part of, in code that runs once per program:
predicates and repetitions are not looked into, so that masked tails, values that several threads
load alike (a row's mean, a weight) and branches not taken are counted in full, and the body of a
loop once. Launches for it fill their tiles and give each program one turn of its loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from acn_kernels.kernels import aot
from acn_kernels.kernels.recorder import Launch

_COMMENT = re.compile(r"//.*")
_PARAMETER = re.compile(r"ld\.param\.\w+\s+(%rd\d+), \[\w+_param_(\d+)[\]+]")
_ACCESS = re.compile(r"\b(ld|st|atom|red)\.global\b([.\w:]*)(.*)")
_VECTOR = re.compile(r"(?:\.v(\d))?\.[busf](\d+)")
_ADDRESS = re.compile(r"\[\s*(%rd\d+)")
_TO_SHARED = re.compile(
    r"\bcp\.async\.c[ag]\.shared\.global\S*\s+\[[^]]*\],\s*\[\s*(%rd\d+)[^]]*\],\s*(\w+)"
)
_REGISTER = re.compile(r"%rd\d+")


class Access(NamedTuple):
    """One instruction: the bytes that a thread moves, and the parameters its address comes from."""

    reads: bool
    writes: bool
    bytes_per_thread: int
    parameters: frozenset[int]


class CompiledTraffic(NamedTuple):
    """Bytes that all threads of a launch read from and write to one argument."""

    read: int = 0
    written: int = 0


def compiled_traffic(launch: Launch, target: str) -> dict[str, CompiledTraffic]:
    """What the code compiled for ``target`` moves, by argument ("sources[0]" inside a tuple).

    Raises:
        RuntimeError: an access cannot be counted or traced to one argument.
        ValueError: ``target`` is unknown.
    """
    aot.check_target(target)
    signature, constexprs, divisible = launch.specialised()
    name = launch.kernel.__name__
    case = aot.KernelCase(
        name, launch.kernel, signature, constexprs, launch.num_warps, divisible=divisible
    )
    compiled = triton.compile(
        aot._source(case),
        target=GPUTarget("cuda", aot.CAPABILITIES[target], 32),
        options={
            "num_warps": launch.num_warps,
            "num_stages": launch.num_stages,
            "maxnreg": launch.maxnreg,
        },
    )
    names = list(_flat_names(launch.kernel.arg_names, signature))
    pointers = {i for i, (_, kind) in enumerate(names) if kind.startswith("*")}
    moved = {names[i][0]: CompiledTraffic() for i in sorted(pointers)}
    threads = launch.num_warps * 32 * prod(launch.grid)
    for access in accesses(compiled.asm["ptx"]):
        found = access.parameters & pointers
        if len(found) != 1:
            raise RuntimeError(
                f"{name}: an access comes from {sorted(names[i][0] for i in found)}; "
                "it is counted for one argument"
            )
        (parameter,) = found
        argument = names[parameter][0]
        size = access.bytes_per_thread * threads
        read, written = moved[argument]
        moved[argument] = CompiledTraffic(
            read + size * access.reads, written + size * access.writes
        )
    return moved


def accesses(ptx: str) -> Iterator[Access]:
    """The global memory accesses of a kernel, in the order of its code."""
    lines = [_COMMENT.sub("", line) for line in ptx.splitlines()]
    sources = _sources_of_registers(lines)
    for line in lines:
        if "cp.async.bulk" in line or "tensormap" in line:
            raise RuntimeError(f"a bulk copy is not counted: {line.strip()}")
        if copy := _TO_SHARED.search(line):
            register, size = copy.groups()
            yield Access(True, False, int(size, 0), sources.get(register, frozenset()))
        if access := _ACCESS.search(line):
            kind, modifiers, operands = access.groups()
            count, bits = _VECTOR.findall(modifiers)[-1]
            register = _ADDRESS.search(operands).group(1)
            yield Access(
                kind != "st",
                kind != "ld",
                int(count or 1) * int(bits) // 8,
                sources.get(register, frozenset()),
            )


def _sources_of_registers(lines: list[str]) -> dict[str, frozenset[int]]:
    """For each 64-bit register the numbers of the parameters that flow into it, not counting
    what was loaded from memory."""
    sources: dict[str, frozenset[int]] = {}
    flows: list[tuple[str, list[str]]] = []
    for line in lines:
        if parameter := _PARAMETER.search(line):
            register, number = parameter.groups()
            sources[register] = frozenset({int(number)})
        elif "ld." not in line and "st." not in line and "atom." not in line:
            target, *operands = _REGISTER.findall(line) or [""]
            if operands:
                flows.append((target, operands))
    changed = True
    while changed:  # loops carry addresses backwards
        changed = False
        for target, operands in flows:
            before = sources.get(target, frozenset())
            after = before.union(*(sources.get(operand, frozenset()) for operand in operands))
            if after != before:
                sources[target], changed = after, True
    return sources


def _flat_names(names: list[str], signature: dict) -> Iterator[tuple[str, str]]:
    """(name, type) of each parameter of the compiled function, in order."""
    for name in names:
        kind = signature.get(name)
        if isinstance(kind, tuple):
            parts = {f"{name}[{i}]": part for i, part in enumerate(kind)}
            yield from _flat_names(list(parts), parts)
        elif kind is not None:
            yield name, kind
