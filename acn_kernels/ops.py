"""The compiled paths as opaque PyTorch operators, ``torch.ops.acn_triton`` and ``acn_native``.

An operation has one schema wherever it exists, so that torch.compile, opcheck and the autograd
Functions see one thing whichever path runs. What an operator does not have to
return (a gradient nobody asked for) is an empty tensor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


def _fake_fork_forward(x, weight, bias, eps, kind):
    rows = x.numel() // x.shape[-1]
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        _stat(x, rows if kind == "layer" else 0),
        _stat(x, rows),
    )


def _fake_fork_backward(dh, g, x, weight, bias, mean, rstd, scale, row_map, kind):
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        _stat(x, 0) if weight is None else torch.empty_like(weight),
        _stat(x, 0) if bias is None else torch.empty_like(bias),
        _stat(x, 0) if scale is None or g is None else torch.empty_like(scale),
    )


def _fake_join_forward(xs, scales, weight, bias, eps, kind, out_dtype):
    shape, rows = xs[0].shape, xs[0].numel() // xs[0].shape[-1]
    norm = kind != "none"
    return (
        torch.empty(shape, dtype=out_dtype, device=xs[0].device),
        xs[0].new_empty(shape if norm else 0, dtype=_stat_dtype(xs[0])),
        _stat(xs[0], rows if kind == "layer" else 0),
        _stat(xs[0], rows if norm else 0),
    )


def _fake_accumulate_norm(
    x, y, first, scale, alpha, row_map, weight, bias, eps, kind, out_dtype
):  # fmt: skip
    return torch.empty(x.shape, dtype=out_dtype, device=x.device)


def _stat_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _stat(x: Tensor, size: int) -> Tensor:
    return x.new_empty(size, dtype=_stat_dtype(x))


class Operator(NamedTuple):
    """One operation: its schema, its shapes and dtypes, and the module of its implementation (a
    function of the same name) in each namespace that has one."""

    schema: str
    fake: Callable
    homes: dict[str, str]


def _homes(triton: str, native: bool = True) -> dict[str, str]:
    homes = {"acn_triton": f"acn_kernels.kernels.{triton}"}
    return {**homes, "acn_native": "acn_kernels.native_ops"} if native else homes


OPERATORS = {
    "fork_forward": Operator(
        "(Tensor x, Tensor? weight, Tensor? bias, float eps, str kind) -> (Tensor, Tensor, Tensor)",
        _fake_fork_forward,
        _homes("fork"),
    ),
    "fork_backward": Operator(
        "(Tensor dh, Tensor? g, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd,"
        " Tensor? scale, Tensor? row_map, str kind) -> (Tensor, Tensor, Tensor, Tensor)",
        _fake_fork_backward,
        _homes("fork"),
    ),
    "join_forward": Operator(
        "(Tensor[] xs, Tensor? scales, Tensor? weight, Tensor? bias, float eps, str kind,"
        " ScalarType out_dtype) -> (Tensor, Tensor, Tensor, Tensor)",
        _fake_join_forward,
        _homes("join"),
    ),
    "accumulate_norm": Operator(
        "(Tensor x, Tensor(a!) y, bool first, Tensor? scale, float alpha, Tensor? row_map,"
        " Tensor? weight, Tensor? bias, float eps, str kind, ScalarType out_dtype) -> Tensor",
        _fake_accumulate_norm,
        _homes("accumulate_norm"),
    ),
}


def _deferred(module: str, name: str) -> Callable:
    """Imports the implementation at its first call: Triton and the extension are optional."""

    def call(*args):
        return getattr(importlib.import_module(module), name)(*args)

    return call


def _register(namespace: str) -> torch.library.Library:
    library = torch.library.Library(namespace, "DEF")
    for name, operator in OPERATORS.items():
        if namespace not in operator.homes:
            continue
        library.define(name + operator.schema)
        implementation = _deferred(operator.homes[namespace], name)
        library.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", operator.fake, lib=library)
    return library


_LIBRARIES = [_register(namespace) for namespace in ("acn_triton", "acn_native")]


def compiled(backend: str) -> ModuleType:
    """The operators of backend "triton" or "native"."""
    return getattr(torch.ops, f"acn_{backend}")
