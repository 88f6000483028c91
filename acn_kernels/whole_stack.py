"""Which stacks one operation can run as a whole, and how it is called for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels import functional
from acn_kernels.dispatch import choose
from acn_kernels.functional.checks import check_sum, is_recorded
from acn_kernels.functional.linear_stack import run_linear_stack
from acn_kernels.functional.mixer_stack import (
    MixerParameters,
    alpha_by_layer,
    obstacle_to_input_of,
    obstacle_to_mixer_blocks,
    parameters_by_kind,
    run_mixer_stack,
)
from acn_kernels.hooks import has_hooks, hooks_on_all
from acn_kernels.kept import StackedParameters
from acn_kernels.norm_spec import NormSpec
from acn_kernels.validation import autocast_dtype, under_autocast

if TYPE_CHECKING:
    from acn_kernels.stack import FusedACNStack


class WholeStack(NamedTuple):
    """``run(x, spec, scales, include_input, out_dtype)`` gives norm(y) for layers taken as one
    operation, on the path ``backend``."""

    operation: str
    backend: str
    run: Callable[[Tensor, NormSpec | None, Tensor | None, bool, torch.dtype], Tensor]


def whole_stack_of(
    stack: FusedACNStack, x: Tensor, depth: int, plain_call: bool
) -> WholeStack | str:
    """How the first ``depth`` layers of ``stack`` run in one call, or in words why they do not.

    ``plain_call``: the layers are called with x alone.
    """
    layers = list(stack)[:depth]
    if not layers:
        return "there is no layer"
    kind = next((kind for kind in _KINDS if kind.takes(layers[0])), None)
    if kind is None:
        return f"{type(layers[0]).__name__} is of no kind that runs as a whole stack"
    obstacle = _obstacle_to_alpha(stack, kind)
    if obstacle:
        return obstacle
    choice = choose(stack.backend, x)
    if choice.backend not in kind.backends:
        return f"{choice.backend} runs layer by layer: {choice.reason}"
    autocast = autocast_dtype(x)
    if choice.backend == "native" and under_autocast(x):
        return "autocast is on"
    obstacle = _obstacle_in_stack(stack, x.device, autocast or x.dtype, plain_call)
    obstacle = obstacle or kind.obstacle_to(x, choice.backend)
    if obstacle:
        return obstacle
    made = stack.kept_layers.of(layers, kind.of)
    if isinstance(made, str):
        return made
    run = functools.partial(made.run, choice.backend, autocast)
    if kind.mixes:
        run = functools.partial(run, alpha=_alpha_of(stack, depth))
    return made.obstacle(x, autocast) or WholeStack(kind.operation, choice.backend, run)


def _obstacle_in_stack(
    stack: FusedACNStack, device: torch.device, dtype: torch.dtype, plain_call: bool
) -> str | None:
    if device.type == "cuda" and dtype == torch.float32 and stack.backend == "auto":
        return "in fp32 cuBLAS multiplies faster than a kernel without tensor cores"
    for name, plain in (
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
    if hooks_on_all():
        return "hooks wait for all modules"
    return None


def _obstacle_to_alpha(stack: FusedACNStack, kind: type) -> str | None:
    if stack.mix is None and stack.alpha == 1:
        return None
    if not kind.mixes:
        return "alpha is not 1"
    if stack.scales is not None or not stack.include_input:
        return "alpha is not 1, beside scales or without the input"
    return None


def _alpha_of(stack: FusedACNStack, depth: int) -> float | Tensor:
    if stack.mix is None:
        return stack.alpha
    return stack.mix[:depth] if stack.mix.dim() else stack.mix


class LinearLayers:
    """``nn.Sequential(nn.Linear(D, D), activation)`` throughout."""

    operation = "linear_stack"
    backends = ("triton", "native")
    mixes = False  # whether alpha may be another than 1

    def __init__(self, weights: list[Tensor], biases: list[Tensor], activation: str) -> None:
        self._weights, self._biases, self._activation = weights, biases, activation
        self._stacked = StackedParameters([weights, biases] if biases else [weights])

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        # Indexing a Sequential costs a microsecond.
        modules = tuple(layer._modules.values()) if type(layer) is nn.Sequential else ()
        return len(modules) == 2 and type(modules[0]) is nn.Linear

    @staticmethod
    def obstacle_to(x: Tensor, backend: str) -> str | None:
        """Why no such layers run on inputs like x, whatever they are."""
        recorded = torch.is_grad_enabled()  # as good as certain with layers that have weights
        return functional.obstacle_to_linear_stack(backend, x, recorded)

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> LinearLayers | str:
        """What ``layers`` are, or in words why they are not that."""
        first, activate = layers[0]
        activation = _activation_name(activate)
        if activation is None:
            return f"{type(activate).__name__} is no activation that the operation knows"
        width, biased = first.weight.shape[-1], first.bias is not None
        place = first.weight.dtype, first.weight.device
        weights, biases = [], []
        for i, layer in enumerate(layers):
            if not cls.takes(layer):
                return f"layers[{i}] differs from layers[0]"
            linear, activate = layer._modules.values()
            if _activation_name(activate) != activation:
                return f"layers[{i}] differs from layers[0]"
            weight, bias = linear.weight, linear.bias
            if type(weight) not in (nn.Parameter, Tensor):
                return f"layers[{i}] has a {type(weight).__name__} for its weight"
            if weight.shape != (width, width):
                return f"layers[{i}] has a weight {tuple(weight.shape)}"
            if (bias is not None) != biased:
                return f"layers[{i}] differs from layers[0] in its bias"
            parameters = (weight, bias) if biased else (weight,)
            if any((parameter.dtype, parameter.device) != place for parameter in parameters):
                return f"layers[{i}] differs from layers[0] in a dtype or a device"
            modules = (layer, linear, activate)
            if any(map(has_hooks, modules)):
                return f"layers[{i}] has hooks"
            weights.append(weight)
            if biased:
                biases.append(bias)
        return cls(weights, biases, activation)

    def obstacle(self, x: Tensor, autocast: torch.dtype | None) -> str | None:
        """Why these layers do not run on inputs like x; None where they do."""
        weight = self._weights[0]
        if weight.shape[-1] != x.shape[-1]:
            return f"layers[0] has a weight {tuple(weight.shape)}, the input {x.shape[-1]} columns"
        if (autocast is None or weight.dtype == torch.float64) and weight.dtype != x.dtype:
            return f"layers[0] is {weight.dtype}, the input {x.dtype}"
        return None

    def run(
        self, backend: str, autocast: torch.dtype | None,
        x: Tensor, spec, scales, include_input: bool, out_dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        check_sum(x, len(self._weights), spec, scales)
        weight, bias, recorded = self._weights, self._biases, False
        if backend == "triton":
            recorded = is_recorded(spec, x, scales, *weight, *bias)
            weight, *biases = self._stacked.tensors(recorded, autocast)
            bias = biases[0] if biases else None
        return run_linear_stack(
            _brought_to(autocast, x), weight, bias, self._activation, spec, scales, include_input,
            out_dtype, backend, recorded,
        )  # fmt: skip


class MixerLayers:
    """``acn_kernels.blocks.MixerBlock`` throughout, in either form."""

    operation = "mixer_stack"
    backends = ("triton",)
    mixes = True
    takes = staticmethod(functional.is_mixer_block)

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._first, self._depth = blocks[0], len(blocks)
        self._stacked = StackedParameters(parameters_by_kind(blocks))

    @staticmethod
    def obstacle_to(x: Tensor, backend: str) -> str | None:
        """Why no such layers run on inputs like x, whatever they are."""
        return None  # a block says more of it

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> MixerLayers | str:
        """What ``layers`` are, or in words why they are not that."""
        return obstacle_to_mixer_blocks(layers) or cls(layers)

    def obstacle(self, x: Tensor, autocast: torch.dtype | None = None) -> str | None:
        """Why these layers do not run on inputs like x; None where they do."""
        return obstacle_to_input_of(self._first, x, autocast)

    def parameters(self, recorded: bool, autocast: torch.dtype | None = None) -> MixerParameters:
        """Those of all layers, for an operation that is ``recorded`` or not."""
        stacked = self._stacked.tensors(recorded, autocast)
        return MixerParameters(*stacked, eps=self._first.norm1.eps)

    def run(
        self, backend: str, autocast: torch.dtype | None,
        x: Tensor, spec, scales, include_input: bool, out_dtype: torch.dtype,
        alpha: float | Tensor,
    ) -> Tensor:  # fmt: skip
        check_sum(x, self._depth, spec, scales)
        recorded = is_recorded(spec, x, scales, *self._stacked.parameters)
        parameters, x = self.parameters(recorded, autocast), _brought_to(autocast, x)
        alpha = alpha_by_layer(alpha, self._depth, x.device)
        return run_mixer_stack(
            x, parameters, alpha, spec, scales, include_input, out_dtype, recorded
        )


def _brought_to(dtype: torch.dtype | None, x: Tensor) -> Tensor:
    return x if dtype is None else x.to(dtype)


_KINDS = (LinearLayers, MixerLayers)


def _activation_name(module: nn.Module) -> str | None:
    """The operations' name for an activation module; None where they have none."""
    if type(module) is nn.GELU:
        return _GELU_NAMES.get(module.approximate)
    return _ACTIVATION_NAMES.get(type(module))


_GELU_NAMES = {"none": "gelu", "tanh": "gelu_tanh"}
_ACTIVATION_NAMES = {nn.ReLU: "relu", nn.SiLU: "silu"}
