"""The networks that are measured, as plain data: which layers, on which shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels.blocks import MixerBlock, TransformerBlock
from benchmarks.throughput.case import Setting


class Parts(NamedTuple):
    """Layers and final norm (None: none), an input x, and a gradient g of the output."""

    layers: nn.ModuleList
    norm: nn.Module | None
    x: Tensor
    g: Tensor


@dataclass(frozen=True)
class Network:
    """``depth`` layers of ``width`` on inputs of ``batch``; subclasses say which."""

    batch: int
    width: int
    depth: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x."""
        raise NotImplementedError

    def layer(self) -> nn.Module:
        raise NotImplementedError

    def norm(self) -> nn.Module | None:
        return nn.LayerNorm(self.width)

    def shrunk(self) -> Network:
        """The same kind of network in its least size."""
        raise NotImplementedError

    def sized_for(self, setting: Setting) -> Network:
        return self.shrunk() if setting.tiny else self

    def make(self, setting: Setting) -> Parts:
        """With random weights and inputs, on the setting's device, in its dtype and size."""
        if setting.tiny:
            return self.shrunk().make(replace(setting, tiny=False))
        layers = nn.ModuleList(self.layer() for _ in range(self.depth)).to(**setting.place)
        norm = self.norm()
        x, g = torch.randn(2, *self.shape, **setting.place)
        return Parts(layers, None if norm is None else norm.to(**setting.place), x, g / g.numel())

    @property
    def words(self) -> str:
        return f"{self.depth} {self.kind} layers on {list(self.shape)}"

    kind = ""


@dataclass(frozen=True)
class Transformer(Network):
    tokens: int
    heads: int
    norm_class: type[nn.Module] = nn.LayerNorm
    stands_for: str = ""  # where the original differs from our pre-norm block
    kind = "pre-norm transformer"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.tokens, self.width

    def layer(self) -> nn.Module:
        return TransformerBlock(self.width, self.heads, norm=self.norm_class)

    def norm(self) -> nn.Module:
        return self.norm_class(self.width)

    def shrunk(self) -> Network:
        return replace(self, batch=2, tokens=8, width=32, heads=2, depth=2)

    @property
    def words(self) -> str:
        return super().words + (f" ({self.stands_for})" if self.stands_for else "")


@dataclass(frozen=True)
class Mixer(Network):
    tokens: int
    token_mlp: int
    channel_mlp: int
    kind = "Mixer"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.tokens, self.width

    def layer(self) -> nn.Module:
        return MixerBlock(self.tokens, self.width, self.token_mlp, self.channel_mlp)

    def shrunk(self) -> Network:
        return replace(self, batch=2, tokens=16, width=32, token_mlp=16, channel_mlp=64, depth=2)


@dataclass(frozen=True)
class LinearStack(Network):
    kind = "Linear + GELU"

    @property
    def shape(self) -> tuple[int, int]:
        return self.batch, self.width

    def layer(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.width, self.width), nn.GELU())

    def norm(self) -> None:
        return None

    def shrunk(self) -> Network:
        return replace(self, batch=64, width=16, depth=2)


class PlainLoop(nn.Module):
    """``for f in layers: x = f(x); y = y + x``, then the norm: the naive ACN. As in all peers, what
    happens inside a block is PyTorch's as well."""

    def __init__(self, layers: nn.ModuleList, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.norm = layers, norm or nn.Identity()

    def forward(self, x: Tensor, *args) -> Tensor:
        y = x
        for layer in self.layers:
            x = plainly(layer, x, *args)
            y = y + x
        return self.norm(y)


def plainly(layer: nn.Module, x: Tensor, *args) -> Tensor:
    """layer(x, *args) as one would write it: without a kernel of ours, and without the package's
    Python around a block, which takes as long again as its operators where they are small."""
    if not isinstance(layer, MixerBlock | TransformerBlock):
        return layer(x, *args)
    u = x
    for norm, f in _halves(layer, args):
        x = f(norm(x))
    if getattr(layer, "closing", None) is not None:
        x = layer.norm3((layer.closing(x) + u).relu())
    return x


class ScaledLoop(PlainLoop):
    """``x_sum = x_sum + s_i * h_i`` with learned scales."""

    def __init__(self, layers: nn.ModuleList, norm: nn.Module | None = None) -> None:
        super().__init__(layers, norm)
        self.scales = nn.Parameter(torch.ones(len(layers) + 1))

    def forward(self, x: Tensor, *args) -> Tensor:
        x_sum = self.scales[0] * x
        for i, layer in enumerate(self.layers):
            x = plainly(layer, x, *args)
            x_sum = x_sum + self.scales[i + 1] * x
        return self.norm(x_sum.to(x.dtype))


class WithoutSum(PlainLoop):
    """The layers one after the other: no accumulator at all."""

    def forward(self, x: Tensor, *args) -> Tensor:
        for layer in self.layers:
            x = plainly(layer, x, *args)
        return self.norm(x)


class PlainResidual(PlainLoop):
    """The pre-norm residual network of the same blocks: ``x = x + f(norm(x))`` twice a block."""

    def forward(self, x: Tensor, *args) -> Tensor:
        for block in self.layers:
            for norm, f in _halves(block, args):
                x = x + f(norm(x))
        return self.norm(x)


def _halves(block: nn.Module, args: tuple) -> Iterator[tuple[nn.Module, Callable]]:
    if isinstance(block, MixerBlock):
        yield block.norm1, lambda h: _mlp(block.token_mlp, h.transpose(-1, -2)).transpose(-1, -2)
        yield block.norm2, lambda h: _mlp(block.channel_mlp, h)
    else:
        yield block.norm1, lambda h: block.attn(h, *args)
        yield block.norm2, lambda h: _mlp(block.mlp, h)


def _mlp(mlp: nn.Module, h: Tensor) -> Tensor:
    return mlp.fc2(mlp.act(mlp.fc1(h)))


_BERT = "BERT-base is post-norm; the pre-norm block of equal shapes stands in"

VIT_TINY = Transformer(batch=2, tokens=196, width=192, heads=3, depth=12)
VIT_SMALL = Transformer(batch=256, tokens=196, width=384, heads=6, depth=12)
VIT_BASE = Transformer(batch=256, tokens=196, width=768, heads=12, depth=12)
BERT_128 = Transformer(batch=256, tokens=128, width=768, heads=12, depth=12, stands_for=_BERT)
BERT_512 = Transformer(batch=64, tokens=512, width=768, heads=12, depth=12, stands_for=_BERT)
GPT2_SMALL = Transformer(batch=16, tokens=1024, width=768, heads=12, depth=12)
GPT_9x512 = Transformer(
    batch=32, tokens=1024, width=512, heads=8, depth=9, norm_class=nn.RMSNorm
)  # fmt: skip
MIXER_SMALL = Mixer(batch=256, tokens=196, width=512, token_mlp=256, channel_mlp=2048, depth=8)
# The paper's CIFAR-10 Mixer.
MIXER_CIFAR = Mixer(batch=512, tokens=64, width=128, token_mlp=64, channel_mlp=512, depth=16)


def linear_stack(width: int, batch: int = 65_536) -> LinearStack:
    return LinearStack(batch=batch, width=width, depth=16)
