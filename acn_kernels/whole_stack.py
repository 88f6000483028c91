"""Which stacks one operation can run as a whole, and how it is called for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels import functional
from acn_kernels.dispatch import choose
from acn_kernels.hooks import has_hooks
from acn_kernels.norm_spec import NormSpec
from acn_kernels.validation import under_autocast

if TYPE_CHECKING:
    from acn_kernels.stack import FusedACNStack


class WholeStack(NamedTuple):
    """``run(x, spec, scales, include_input)`` gives norm(y) for layers taken as one operation,
    on the path ``backend``."""

    operation: str
    backend: str
    run: Callable[[Tensor, NormSpec | None, Tensor | None, bool], Tensor]


def whole_stack_of(
    stack: FusedACNStack, x: Tensor, depth: int, plain_call: bool
) -> WholeStack | str:
    """How the first ``depth`` layers of ``stack`` run in one call, or in words why they do not.

    ``plain_call``: the layers are called with x alone.
    """
    layers = list(stack)[:depth]
    if not layers:
        return "there is no layer"
    family = next((f for f in _FAMILIES if f.takes(layers[0])), None)
    if family is None:
        return f"{type(layers[0]).__name__} is of no kind that runs as a whole stack"
    choice = choose(stack.backend, x)
    if choice.backend not in family.backends:
        return f"{choice.backend} runs layer by layer: {choice.reason}"
    obstacle = _obstacle_in_stack(stack, x, plain_call)
    return obstacle or family.of(layers, x, choice.backend)


def _obstacle_in_stack(stack: FusedACNStack, x: Tensor, plain_call: bool) -> str | None:
    if x.is_cuda and x.dtype == torch.float32 and stack.backend == "auto":
        return "in fp32 cuBLAS multiplies faster than a kernel without tensor cores"
    for name, plain in (
        ("alpha", stack.alpha == 1),
        ("splits", not stack.splits),
        ("rows", stack.rows is None),
        ("granularity", stack.granularity == "block"),
        ("direct_gradient_only", not stack.direct_gradient_only),
        ("checkpoint", stack.checkpoint is not True or not torch.is_grad_enabled()),
    ):
        if not plain:
            return f"{name} is {getattr(stack, name)!r}"
    if not plain_call:
        return "the layers take further arguments"
    if under_autocast(x):
        return "autocast is on"
    return None


class _LinearFamily:
    """``nn.Sequential(nn.Linear(D, D), activation)`` throughout."""

    backends = ("triton", "native")

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        # Indexing a Sequential costs a microsecond, and this is asked of every layer at every call.
        modules = tuple(layer._modules.values()) if type(layer) is nn.Sequential else ()
        return len(modules) == 2 and type(modules[0]) is nn.Linear

    @staticmethod
    def of(layers: Sequence[nn.Module], x: Tensor, backend: str) -> WholeStack | str:
        recorded = torch.is_grad_enabled()  # as good as certain with layers that have weights
        obstacle = functional.obstacle_to_linear_stack(backend, x, recorded)
        if obstacle:
            return obstacle
        first, activate = layers[0]
        activation = _activation_name(activate)
        if activation is None:
            return f"{type(activate).__name__} is no activation that the operation knows"
        shape, biased = (x.shape[-1], x.shape[-1]), first.bias is not None
        weights, biases = [], []
        for i, layer in enumerate(layers):
            if not _LinearFamily.takes(layer):
                return f"layers[{i}] differs from layers[0]"
            linear, activate = layer._modules.values()
            if _activation_name(activate) != activation:
                return f"layers[{i}] differs from layers[0]"
            weight, bias = linear.weight, linear.bias
            if type(weight) not in (nn.Parameter, Tensor):
                return f"layers[{i}] has a {type(weight).__name__} for its weight"
            if weight.shape != shape:
                return f"layers[{i}] has a weight {tuple(weight.shape)}"
            if (bias is not None) != biased:
                return f"layers[{i}] differs from layers[0] in its bias"
            if weight.dtype != x.dtype:
                return f"layers[{i}] is {weight.dtype}, the input {x.dtype}"
            if has_hooks(layer) or has_hooks(linear) or has_hooks(activate):
                return f"layers[{i}] has hooks"
            weights.append(weight)
            biases.append(bias)

        def run(x, spec, scales, include_input):
            bias = biases if biased else None
            return functional.linear_stack(
                x, weights, bias, activation, spec, scales, include_input, backend=backend
            )

        return WholeStack("linear_stack", backend, run)


class _MixerFamily:
    """``acn_kernels.blocks.MixerBlock`` throughout, in either form."""

    backends = ("triton",)
    takes = staticmethod(functional.is_mixer_block)

    @staticmethod
    def of(layers: Sequence[nn.Module], x: Tensor, backend: str) -> WholeStack | str:
        obstacle = functional.obstacle_to_mixer_stack(layers, x)
        if obstacle:
            return obstacle

        def run(x, spec, scales, include_input):
            parameters = functional.MixerParameters.of(layers)
            return functional.mixer_stack(x, parameters, spec, scales, include_input)

        return WholeStack("mixer_stack", backend, run)


_FAMILIES = (_LinearFamily, _MixerFamily)


def _activation_name(module: nn.Module) -> str | None:
    """The operations' name for an activation module; None where they have none."""
    if type(module) is nn.GELU:
        return _GELU_NAMES.get(module.approximate)
    return _ACTIVATION_NAMES.get(type(module))


_GELU_NAMES = {"none": "gelu", "tanh": "gelu_tanh"}
_ACTIVATION_NAMES = {nn.ReLU: "relu", nn.SiLU: "silu"}
