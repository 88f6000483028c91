"""Inference at full and truncated depth, and the narrow networks that are one kernel each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from acn_kernels import FusedACNStack
from benchmarks.throughput.case import Case, Setting, Way, Ways
from benchmarks.throughput.networks import (
    MIXER_CIFAR,
    MIXER_SMALL,
    VIT_BASE,
    VIT_SMALL,
    VIT_TINY,
    Network,
    Parts,
    PlainLoop,
    PlainResidual,
    linear_stack,
)
from benchmarks.throughput.peers import ahead_of_time, compiled, graphed, onnx_runtime
from benchmarks.throughput.steps import FUSED, NAIVE, RESIDUAL, add_backends, compare_with_loop

GRAPHED = f"{NAIVE}, CUDA graph"
TUNED = f"{NAIVE}, max-autotune"


def inference(network: Callable, x: torch.Tensor) -> Way:
    return torch.no_grad()(lambda: network(x))


def _truncated(parts: Parts, depth: int) -> Parts:
    return parts._replace(layers=parts.layers[:depth])


def truncated_against_runtimes(
    network: Network, depth: int | None = None
) -> Callable[[Setting], Ways]:
    """The first ``depth`` layers in every form in which a user would deploy them; the full depth
    and the residual network, which cannot be cut, beside them."""

    def build(setting: Setting) -> Ways:
        parts = network.make(setting)
        full = len(parts.layers)
        kept = full if depth is None else setting.size(depth, 1)
        layers, norm, x, _ = _truncated(parts, kept)
        loop = PlainLoop(layers, norm).eval()
        stack = FusedACNStack(parts.layers, norm).eval()
        ways = Ways(f"the first {kept} of {network.sized_for(setting).words}, forward")
        ways.add(NAIVE, inference(loop, x))
        ways.add(f"{NAIVE}, compiled", inference(compiled(loop, setting), x))
        ways.add_ours(FUSED, inference(stack.truncate(kept), x))
        ways.add(TUNED, inference(compiled(loop, setting, "max-autotune"), x), graphed=True)
        ways.add(f"{NAIVE}, AOTInductor", ahead_of_time(loop, x, setting))
        ways.add(f"{NAIVE}, ONNX Runtime", onnx_runtime(loop, x, setting))
        _add_full_depth(ways, parts, stack, kept < full)
        for against in (NAIVE, f"{NAIVE}, compiled", TUNED, f"{NAIVE}, AOTInductor"):
            ways.compare(f"{FUSED} against {against}", FUSED, against)
        return ways

    return build


def _add_full_depth(ways: Ways, parts: Parts, stack: FusedACNStack, is_cut: bool) -> None:
    layers, norm, x, _ = parts
    ways.add(
        f"{RESIDUAL}, full depth", inference(PlainResidual(layers, norm).eval(), x),
        like=None, same_work=not is_cut,
    )  # fmt: skip
    if is_cut:
        ways.add_ours(f"{FUSED}, full depth", inference(stack, x), like=None, same_work=False)
        ways.compare("what cutting gains", FUSED, f"{FUSED}, full depth")


def narrow_against_graphs(
    network: Network, targets: dict[str, float] | None = None
) -> Callable[[Setting], Ways]:
    """A narrow network, whose kernels are short beside their launches: peers without launches.

    ``targets``: as in steps.stack_against_peers.
    """

    def build(setting: Setting) -> Ways:
        layers, norm, x, _ = network.make(setting)
        loop = PlainLoop(layers, norm).eval()
        stack = FusedACNStack(layers, norm).eval()
        ways = Ways(f"{network.sized_for(setting).words}, forward")
        ways.add(NAIVE, inference(loop, x))
        ways.add(f"{NAIVE}, compiled", inference(compiled(loop, setting), x))
        ways.add(TUNED, inference(compiled(loop, setting, "max-autotune"), x), graphed=True)
        replayed = compiled(loop, setting, "reduce-overhead")
        ways.add(f"{NAIVE}, reduce-overhead", inference(replayed, x), graphed=True)
        ways.add(GRAPHED, graphed(loop, x, setting), graphed=True)
        ways.add_ours(FUSED, inference(stack, x))
        replayed_stack = f"{FUSED}, CUDA graph"
        ways.add_ours(replayed_stack, graphed(stack, x, setting), graphed=True)
        aims = (targets or {}) if setting.on_gpu else {}
        for against in (NAIVE, f"{NAIVE}, compiled", TUNED, f"{NAIVE}, reduce-overhead", GRAPHED):
            ways.compare(f"{FUSED} against {against}", FUSED, against, aims.get(against))
        for against in (TUNED, GRAPHED):  # which are without launches, too
            ways.compare(f"{replayed_stack} against {against}", replayed_stack, against)
        return ways

    return build


def forward_against_loop(network: Network) -> Callable[[Setting], Ways]:
    """The plain loop, and the fused stack on every backend that this machine has."""

    def build(setting: Setting) -> Ways:
        layers, norm, x, _ = network.make(setting)

        def fused(backend: str) -> nn.Module:
            return FusedACNStack(layers, norm, backend=backend).eval()

        ways = Ways(f"{network.sized_for(setting).words}, forward")
        loop = PlainLoop(layers, norm).eval()
        ways.add(NAIVE, inference(loop, x))
        ways.add(f"{NAIVE}, compiled", inference(compiled(loop, setting), x))
        ways.add_ours(FUSED, inference(fused("auto"), x))
        ways.add_ours(f"{FUSED}, compiled", inference(compiled(fused("auto"), setting), x))
        add_backends(ways, x, lambda backend: inference(fused(backend), x))
        compare_with_loop(ways)
        return ways

    return build


_CIFAR_TARGETS = {GRAPHED: 1 / 3, TUNED: 1 / 2}


def _cifar(batch: int) -> Case:
    targets = _CIFAR_TARGETS if batch == 512 else None
    network = replace(MIXER_CIFAR, batch=batch)
    return Case(f"infer_mixer_cifar_b{batch}", narrow_against_graphs(network, targets), rounds=31)


def _linear(width: int) -> Case:
    targets = {TUNED: 1 / 5} if width == 128 else None
    network = linear_stack(width)
    return Case(f"infer_mlp{width}", narrow_against_graphs(network, targets), rounds=31)


CPU_INFERENCE = (
    Case("cpu_infer_vit_tiny", forward_against_loop(VIT_TINY)),
    Case("cpu_infer_mixer_cifar", forward_against_loop(replace(MIXER_CIFAR, batch=16))),
    Case("cpu_infer_mlp128", forward_against_loop(linear_stack(128, batch=2048))),
)
INFER_CASES = (
    _cifar(512),
    _linear(128),
    Case("infer_vit_base_6_of_12", truncated_against_runtimes(VIT_BASE, 6), rounds=21),
    Case("infer_vit_base", truncated_against_runtimes(VIT_BASE), rounds=21),
    _cifar(1),
    _cifar(4096),
    _cifar(64),
    _cifar(8),
    _linear(64),
    _linear(256),
    Case("infer_vit_small_6_of_12", truncated_against_runtimes(VIT_SMALL, 6), rounds=21),
    Case("infer_mixer_small_4_of_8", truncated_against_runtimes(MIXER_SMALL, 4), rounds=21),
)
