"""Recording launches instead of making them: which kernels a launcher would run, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

_TYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


class Launch(NamedTuple):
    """A kernel, its grid, its arguments by name, and the launch options."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, object]
    num_warps: int
    maxnreg: int | None
    num_stages: int

    def specialised(self) -> tuple[dict[str, str | tuple], dict[str, object], frozenset[str]]:
        """(signature, constexprs, divisible) as the launch would specialise the kernel.

        Absent pointers and integers that are 1 become constants, integers that are multiples of
        16 are marked so: Triton compiles for both, where the kernel does not tell it otherwise.
        """
        signature, constexprs, divisible = {}, {}, set()
        for parameter in self.kernel.params:
            name, value = parameter.name, self.arguments[parameter.name]
            counts = not parameter.do_not_specialize
            one = counts and type(value) is int and value == 1
            if parameter.is_constexpr or value is None or one:
                constexprs[name] = value
                continue
            signature[name] = type_name(value)
            parts = value if isinstance(value, tuple) else (value,)
            if counts and all(type(part) is int and part % 16 == 0 for part in parts):
                divisible.add(name)
        return signature, constexprs, frozenset(divisible)


def type_name(value: object) -> str | tuple:
    """Triton's name for the type of a launch argument.

    Raises:
        TypeError: the launchers pass no such value.
    """
    if isinstance(value, Tensor):
        return "*" + _TYPE_NAMES[value.dtype]
    if isinstance(value, tuple):
        return tuple(type_name(part) for part in value)
    if type(value) is int:
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if type(value) is float:
        return "fp32"
    raise TypeError(f"a launch passes a {type(value).__name__}")


def launches_of(launcher: Callable, *args) -> list[Launch]:
    """The launches that ``launcher(*args)`` makes; nothing runs, tensors may be on "meta"."""
    with _recording() as launches:
        launcher(*args)
    return launches


@contextmanager
def _recording() -> Iterator[list[Launch]]:
    launches: list[Launch] = []

    def record(kernel, *args, grid, warmup, num_warps=4, maxnreg=None, num_stages=3, **named):
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | named
        launches.append(Launch(kernel, grid, arguments, num_warps, maxnreg, num_stages))

    original, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = original
