"""Which stacks one kernel can run as a whole, and how it is called for them."""

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
    """``run(x, spec, scales, include_input)`` gives norm(y) for layers taken as one operation."""

    operation: str
    run: Callable[[Tensor, NormSpec | None, Tensor | None, bool], Tensor]


def whole_stack_of(
    stack: FusedACNStack, x: Tensor, depth: int, plain_call: bool
) -> WholeStack | str:
    """How the first ``depth`` layers of ``stack`` run in one kernel, or in words why they do not.

    ``plain_call``: the layers are called with x alone.
    """
    layers = list(stack)[:depth]
    if not layers:
        return "there is no layer"
    family = next((f for f in _FAMILIES if f.takes(layers[0])), None)
    if family is None:
        return f"{type(layers[0]).__name__} is of no kind that a whole-stack kernel runs"
    obstacle = _obstacle_in_stack(stack, x, plain_call)
    return obstacle or family.of(layers, x)


def _obstacle_in_stack(stack: FusedACNStack, x: Tensor, plain_call: bool) -> str | None:
    choice = choose(stack.backend, x)
    if choice.backend != "triton":
        return f"whole-stack kernels are Triton's; {choice.backend} runs: {choice.reason}"
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

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        return type(layer) is nn.Sequential and len(layer) == 2 and type(layer[0]) is nn.Linear

    @staticmethod
    def of(layers: Sequence[nn.Module], x: Tensor) -> WholeStack | str:
        width, first = x.shape[-1], layers[0]
        activation = _activation_name(first[1])
        if activation is None:
            return f"{type(first[1]).__name__} is no activation that the kernel knows"
        for i, layer in enumerate(layers):
            if not _LinearFamily.takes(layer) or _activation_name(layer[1]) != activation:
                return f"layers[{i}] differs from layers[0]"
            linear = layer[0]
            if type(linear.weight) not in (nn.Parameter, Tensor):
                return f"layers[{i}] has a {type(linear.weight).__name__} for its weight"
            if linear.weight.shape != (width, width):
                return f"layers[{i}] has a weight {tuple(linear.weight.shape)}"
            if (linear.bias is None) != (first[0].bias is None):
                return f"layers[{i}] differs from layers[0] in its bias"
            if linear.weight.dtype != x.dtype:
                return f"layers[{i}] is {linear.weight.dtype}, the input {x.dtype}"
            if any(has_hooks(module) for module in (layer, *layer)):
                return f"layers[{i}] has hooks"
        obstacle = functional.obstacle_to_linear_stack(x)
        if obstacle:
            return obstacle

        def run(x, spec, scales, include_input):
            weight = torch.stack([layer[0].weight for layer in layers])
            biased = first[0].bias is not None
            bias = torch.stack([layer[0].bias for layer in layers]) if biased else None
            return functional.linear_stack(x, weight, bias, activation, spec, scales, include_input)

        return WholeStack("linear_stack", run)


class _MixerFamily:
    """``acn_kernels.blocks.MixerBlock`` throughout, in either form."""

    takes = staticmethod(functional.is_mixer_block)

    @staticmethod
    def of(layers: Sequence[nn.Module], x: Tensor) -> WholeStack | str:
        obstacle = functional.obstacle_to_mixer_stack(layers, x)
        if obstacle:
            return obstacle

        def run(x, spec, scales, include_input):
            parameters = functional.MixerParameters.of(layers)
            return functional.mixer_stack(x, parameters, spec, scales, include_input)

        return WholeStack("mixer_stack", run)


_FAMILIES = (_LinearFamily, _MixerFamily)


def _activation_name(module: nn.Module) -> str | None:
    """The kernels' name for an activation module; None where they have none."""
    if type(module) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(module.approximate)
    return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(module))
