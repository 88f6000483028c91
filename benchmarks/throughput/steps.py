"""Training steps of a stack of blocks: the fused stack against loops that a user would write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from acn_kernels import FusedACNStack
from acn_kernels.blocks import MixerBlock, TransformerBlock
from benchmarks.throughput.case import Case, Way


class PlainLoop(nn.Module):
    """``for f in layers: x = f(x); y = y + x``, then the norm: the naive ACN."""

    def __init__(self, layers: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = layers, norm

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            x = layer(x)
            y = y + x
        return self.norm(y)


def training_step(network: nn.Module, x: Tensor, target: Tensor) -> Way:
    """Forward and backward with a gradient for x; returns that gradient."""

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        leaf = x.detach().requires_grad_()
        torch.nn.functional.mse_loss(network(leaf), target).backward()
        return leaf.grad

    return step


def stack_against_loop(
    block: Callable[[], nn.Module], depth: int, shape: tuple[int, ...], backends: tuple[str, ...]
) -> Callable[[str], dict[str, Way]]:
    """The plain loop and the fused stack on each backend, with the same weights and inputs."""

    def build(device: str) -> dict[str, Way]:
        layers = nn.ModuleList(block() for _ in range(depth)).to(device)
        norm = nn.LayerNorm(shape[-1]).to(device)
        x, target = torch.randn(2, *shape, device=device)
        ways = {"plain loop": training_step(PlainLoop(layers, norm), x, target)}
        for backend in backends:
            stack = FusedACNStack(layers, norm, backend=backend)
            ways[f"FusedACNStack, {backend}"] = training_step(stack, x, target)
        return ways

    return build


VIT_TINY = Case(
    "train_step_vit_tiny",
    "12 transformer blocks, D 192, [8, 196, 192] fp32, forward and backward",
    stack_against_loop(lambda: TransformerBlock(192, 3), 12, (8, 196, 192), ("torch", "native")),
)
MIXER_CIFAR = Case(
    "train_step_mixer_cifar",
    "16 Mixer blocks, D 128, [64, 64, 128] fp32, forward and backward",
    stack_against_loop(
        lambda: MixerBlock(64, 128, 64, 512), 16, (64, 64, 128), ("torch", "native")
    ),
)
