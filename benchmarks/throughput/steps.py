"""Training steps: the fused stack against the loops that a user would write, and their compiled
forms, residual and ACN, all with the same blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acn_kernels import FusedACNStack, dispatch
from acn_kernels.blocks import MixerBlock, TransformerBlock
from benchmarks.throughput.case import Case, Setting, Way, Ways


class PlainLoop(nn.Module):
    """``for f in layers: x = f(x); y = y + x``, then the norm: the naive ACN."""

    def __init__(self, layers: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = layers, norm

    def forward(self, x: Tensor, *args) -> Tensor:
        y = x
        for layer in self.layers:
            x = layer(x, *args)
            y = y + x
        return self.norm(y)


class PlainResidual(PlainLoop):
    """The pre-norm residual network of the same transformer blocks."""

    def forward(self, x: Tensor, *args) -> Tensor:
        for block in self.layers:
            x = x + block.attn(block.norm1(x), *args)
            x = x + block.mlp(block.norm2(x))
        return self.norm(x)


def training_step(network: nn.Module, x: Tensor, g: Tensor, rows: slice = slice(None)) -> Way:
    """Forward and backward from the gradient g of the output; returns the gradient of x."""

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        leaf = x.detach().requires_grad_()
        network(leaf)[:, rows].backward(g[:, rows])
        return leaf.grad

    return step


@dataclass(frozen=True)
class Blocks:
    """A stack's blocks and the shape [batch, tokens, width] of its input."""

    block: Callable[[], nn.Module]
    depth: int
    shape: tuple[int, int, int]

    def make(self, setting: Setting) -> tuple[nn.ModuleList, nn.Module, Tensor, Tensor]:
        """(layers, norm, x, gradient of the output)."""
        batch, tokens, width = self.shape
        shape = (setting.size(batch, 2), tokens, width)
        layers = nn.ModuleList(self.block() for _ in range(setting.size(self.depth, 2)))
        norm = nn.LayerNorm(width)
        x, g = torch.randn(2, *shape, device=setting.device, dtype=setting.dtype)
        place = {"device": setting.device, "dtype": setting.dtype}
        return layers.to(**place), norm.to(**place), x, g / g.numel()

    def words(self, x: Tensor, depth: int) -> str:
        return f"{depth} blocks on {list(x.shape)}, forward and backward"


def stack_against_loop(blocks: Blocks) -> Callable[[Setting], Ways]:
    """The plain loop, and the fused stack on every backend that this machine has."""

    def build(setting: Setting) -> Ways:
        layers, norm, x, g = blocks.make(setting)
        ways = {"plain loop": training_step(PlainLoop(layers, norm), x, g)}
        missing = {}
        for backend in ("torch", "native", "triton"):
            name, obstacle = f"FusedACNStack, {backend}", dispatch.obstacle_to(backend, x)
            if obstacle:
                missing[name] = obstacle
            else:
                ways[name] = training_step(FusedACNStack(layers, norm, backend=backend), x, g)
        return Ways(ways, blocks.words(x, len(layers)), missing)

    return build


def stack_against_peers(blocks: Blocks) -> Callable[[Setting], Ways]:
    """Eager and compiled residual and naive ACN, the fused stack, and what its y costs."""

    def build(setting: Setting) -> Ways:
        layers, norm, x, g = blocks.make(setting)
        residual, loop = PlainResidual(layers, norm), PlainLoop(layers, norm)
        without_y = [0.0] * len(layers) + [1.0]
        fused = FusedACNStack(layers, norm)
        ways = {
            "naive ACN, eager": training_step(loop, x, g),
            "naive ACN, compiled": training_step(torch.compile(loop), x, g),
            "FusedACNStack": training_step(fused, x, g),
            "FusedACNStack, compiled": training_step(torch.compile(fused), x, g),
            "residual, eager": training_step(residual, x, g),
            "residual, compiled": training_step(torch.compile(residual), x, g),
            "FusedACNStack, rows first": training_step(
                FusedACNStack(layers, norm, rows="first"), x, g, slice(0, 1)
            ),
            "FusedACNStack, fixed scales": training_step(
                FusedACNStack(layers, norm, scales=without_y), x, g
            ),
            "FusedACNStack, learned scales": training_step(
                FusedACNStack(layers, norm, scales="learned").to(x.device), x, g
            ),
        }
        return Ways(ways, blocks.words(x, len(layers)))

    return build


VIT_TINY = Blocks(lambda: TransformerBlock(192, 3), 12, (2, 196, 192))
VIT_SMALL = Blocks(lambda: TransformerBlock(384, 6), 12, (256, 196, 384))
VIT_BASE = Blocks(lambda: TransformerBlock(768, 12), 12, (256, 196, 768))
MIXER_CIFAR = Blocks(lambda: MixerBlock(64, 128, 64, 512), 16, (16, 64, 128))

CPU_CASES = (
    Case("cpu_step_vit_tiny", stack_against_loop(VIT_TINY)),
    Case("cpu_step_mixer_cifar", stack_against_loop(MIXER_CIFAR)),
)
TRAIN_CASES = (
    Case("train_vit_base", stack_against_peers(VIT_BASE), rounds=15),
    Case("train_vit_small", stack_against_peers(VIT_SMALL), rounds=15),
)
