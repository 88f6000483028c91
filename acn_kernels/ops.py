"""The compiled paths as opaque operators: ``torch.ops.acn_triton``, ``acn_native``, ``acn_cuda``.

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


def _fake_bias_gelu(z, bias):
    return torch.empty(z.shape, dtype=z.dtype, device=z.device)


def _fake_bias_gelu_backward(dh, z, bias):
    return torch.empty(z.shape, dtype=z.dtype, device=z.device), torch.empty_like(bias)


def _fake_linear_stack(
    x, weight, bias, scales, norm_weight, norm_bias, eps, kind, activation, include_input, keep,
    out_dtype,
):  # fmt: skip
    rows = x.numel() // x.shape[-1]
    norm = keep and kind != "none"
    return (
        torch.empty(x.shape, dtype=out_dtype, device=x.device),
        x.new_empty(x.shape if norm else 0, dtype=torch.float32),
        _stat(x, rows if keep and kind == "layer" else 0),
        _stat(x, rows if norm else 0),
        x.new_empty((len(weight), rows, _stack_width(x)) if keep else 0),
    )


def _stack_width(x: Tensor) -> int:
    """What kernels.launch.stack_tile pads D to; this module imports no Triton."""
    return max(16, 1 << (x.shape[-1] - 1).bit_length())


def _fake_linear_layers(
    x, weight, bias, scales, norm_weight, norm_bias, eps, kind, activation, include_input, out_dtype
):  # fmt: skip
    return torch.empty(x.shape, dtype=out_dtype, device=x.device)


def _fake_linear_stack_backward(g, x, weight, bias, scales, kept, activation, include_input):
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(weight.shape, dtype=weight.dtype, device=x.device),
        _stat(x, 0) if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=x.device),
        _stat(x, 0) if scales is None else torch.empty_like(scales),
    )


def _fake_mixer_stack(
    x, parameters, alpha, scales, weight, bias, layer_eps, eps, kind, include_input, keep, out_dtype
):  # fmt: skip
    rows = x.numel() // x.shape[-1]
    norm = keep and kind != "none"
    kept = len(parameters[0]) - (alpha is not None)
    return (
        torch.empty(x.shape, dtype=out_dtype, device=x.device),
        _stat(x, 0) if not norm else x.new_empty(x.shape, dtype=torch.float32),
        _stat(x, rows if norm and kind == "layer" else 0),
        _stat(x, rows if norm else 0),
        x.new_empty((kept, *x.shape) if keep else 0),
    )


def _fake_exit_head(
    x, y, scale, norm_weight, norm_bias, eps, kind, pooling, weight, bias, threshold
):  # fmt: skip
    samples = x.shape[0]
    return (
        x.new_empty(samples, weight.shape[0]),
        x.new_empty(samples, dtype=torch.float32),
        x.new_empty(samples, dtype=torch.bool),
        x.new_empty((), dtype=torch.int32),
    )


def _fake_compact(stays, tensors, kept):
    kept = stays.shape[0] if kept is None else kept
    return (
        [x.new_empty((kept, *x.shape[1:])) for x in tensors],
        stays.new_empty((), dtype=torch.int32),
    )


def _fake_mixer_stack_backward(g, x, kept, parameters, alpha, scales, layer_eps, include_input):
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        _stat(x, 0) if scales is None else torch.empty_like(scales),
        [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in parameters],
    )


def _fake_mixer_exit(
    x, parameters, scales, weight, bias, exits, head_weight, head_bias, layer_eps, eps, kind,
    include_input, pooling, threshold,
):  # fmt: skip
    return (
        x.new_empty((len(x), len(head_weight))),
        x.new_empty(len(x), dtype=torch.int64),
        x.new_empty(len(parameters[0]) + 1, dtype=torch.int32),
    )


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


_NATIVE = {"acn_native": "acn_kernels.native_ops"}


def _homes(triton: str, native: bool = True, cuda: bool = False) -> dict[str, str]:
    homes = {"acn_triton": f"acn_kernels.kernels.{triton}"}
    homes |= _NATIVE if native else {}
    return homes | ({"acn_cuda": "acn_kernels.cuda_ops"} if cuda else {})


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
        _homes("join", cuda=True),
    ),
    "accumulate_norm": Operator(
        "(Tensor x, Tensor(a!) y, bool first, Tensor? scale, float alpha, Tensor? row_map,"
        " Tensor? weight, Tensor? bias, float eps, str kind, ScalarType out_dtype) -> Tensor",
        _fake_accumulate_norm,
        _homes("accumulate_norm", cuda=True),
    ),
    "bias_gelu": Operator(
        "(Tensor z, Tensor bias) -> Tensor", _fake_bias_gelu, _homes("bias_gelu")
    ),
    "bias_gelu_backward": Operator(
        "(Tensor dh, Tensor z, Tensor bias) -> (Tensor, Tensor)",
        _fake_bias_gelu_backward,
        _homes("bias_gelu", native=False),
    ),
    "linear_stack": Operator(
        "(Tensor x, Tensor weight, Tensor? bias, Tensor? scales, Tensor? norm_weight,"
        " Tensor? norm_bias, float eps, str kind, str activation, bool include_input, bool keep,"
        " ScalarType out_dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_linear_stack,
        _homes("linear_stack", native=False),
    ),
    "linear_stack_backward": Operator(
        "(Tensor g, Tensor x, Tensor weight, Tensor? bias, Tensor? scales, Tensor kept,"
        " str activation, bool include_input) -> (Tensor, Tensor, Tensor, Tensor)",
        _fake_linear_stack_backward,
        _homes("linear_stack_backward", native=False),
    ),
    "linear_layers": Operator(
        "(Tensor x, Tensor[] weight, Tensor[] bias, Tensor? scales, Tensor? norm_weight,"
        " Tensor? norm_bias, float eps, str kind, str activation, bool include_input,"
        " ScalarType out_dtype) -> Tensor",
        _fake_linear_layers,
        _NATIVE,
    ),
    "mixer_stack": Operator(
        "(Tensor x, Tensor[] parameters, Tensor? alpha, Tensor? scales, Tensor? weight,"
        " Tensor? bias, float layer_eps, float eps, str kind, bool include_input, bool keep,"
        " ScalarType out_dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_mixer_stack,
        _homes("mixer_stack", native=False),
    ),
    "exit_head": Operator(
        "(Tensor x, Tensor? y, Tensor? scale, Tensor? norm_weight, Tensor? norm_bias, float eps,"
        " str kind, str pooling, Tensor weight, Tensor? bias, float threshold)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _fake_exit_head,
        _homes("exit_head", native=False, cuda=True),
    ),
    "compact": Operator(
        "(Tensor stays, Tensor[] tensors, SymInt? kept) -> (Tensor[], Tensor)",
        _fake_compact,
        _homes("compaction", native=False, cuda=True),
    ),
    "mixer_stack_backward": Operator(
        "(Tensor g, Tensor x, Tensor kept, Tensor[] parameters, Tensor? alpha, Tensor? scales,"
        " float layer_eps, bool include_input) -> (Tensor, Tensor, Tensor[])",
        _fake_mixer_stack_backward,
        _homes("mixer_stack_backward", native=False),
    ),
    "mixer_exit": Operator(
        "(Tensor x, Tensor[] parameters, Tensor? scales, Tensor? weight, Tensor? bias,"
        " Tensor exits, Tensor head_weight, Tensor? head_bias, float layer_eps, float eps,"
        " str kind, bool include_input, str pooling, float threshold) -> (Tensor, Tensor, Tensor)",
        _fake_mixer_exit,
        _homes("mixer_exit", native=False),
    ),
}


def _deferred(module: str, name: str) -> Callable:
    """Imports the implementation at its first call: Triton and the extension are optional."""

    def call(*args):
        return getattr(importlib.import_module(module), name)(*args)

    return call


def _where_the_input_is(implementation: Callable) -> Callable:
    """Runs it there: Triton launches on the current device; the extension looks for itself."""

    def call(*args):
        x, *_ = args[0] if isinstance(args[0], list) else args
        with torch.cuda.device_of(x):
            return implementation(*args)

    return call


def _register(namespace: str) -> torch.library.Library:
    library = torch.library.Library(namespace, "DEF")
    for name, operator in OPERATORS.items():
        if namespace not in operator.homes:
            continue
        library.define(name + operator.schema)
        implementation = _deferred(operator.homes[namespace], name)
        if namespace == "acn_triton":
            implementation = _where_the_input_is(implementation)
        library.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", operator.fake, lib=library)
    return library


_LIBRARIES = [_register(namespace) for namespace in ("acn_triton", "acn_native", "acn_cuda")]


def compiled(backend: str, x: Tensor | None = None) -> ModuleType:
    """The operators of backend "triton" or "native"; for x on a GPU, its CUDA kernels."""
    on_gpu = backend == "native" and x is not None and x.is_cuda
    return torch.ops.acn_cuda if on_gpu else getattr(torch.ops, f"acn_{backend}")
