"""Language models with head and cross entropy: GPT-2 small, and the 9-layer 512-wide GPT whose
users measured what a naive accumulator with learned scales costs under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acn_kernels import FusedACNStack
from benchmarks.throughput.case import Case, Setting, Ways
from benchmarks.throughput.networks import (
    GPT2_SMALL,
    GPT_9x512,
    PlainLoop,
    PlainResidual,
    ScaledLoop,
    Transformer,
    WithoutSum,
)
from benchmarks.throughput.peers import compiled

VOCABULARY = 50_304  # GPT-2's, rounded up to a multiple of 128
NO_SUM, NAIVE_SUM = "no accumulator", "naive accumulator"
NAIVE, RESIDUAL, FUSED = "naive ACN", "residual", "FusedACNStack"


class LanguageModel(nn.Module):
    """Embedding and learned positions, a body of causal blocks, head and cross entropy."""

    def __init__(self, embedding: nn.Embedding, positions: Tensor, body: nn.Module, head) -> None:
        super().__init__()
        self.embedding, self.positions, self.body, self.head = embedding, positions, body, head

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean loss of predicting tokens[:, 1:] from tokens[:, :-1]."""
        x = self.embedding(tokens[:, :-1]) + self.positions
        logits = self.head(self.body(x, None, True))  # attn_mask, is_causal
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


@dataclass
class LanguageStep:
    """Forward and backward of a model; calling it returns the gradient of the positions."""

    model: LanguageModel
    tokens: Tensor
    run: Callable[[Tensor], Tensor]

    @property
    def eager(self) -> bool:
        return self.run is self.model

    def forward(self) -> Tensor:
        return self.run(self.tokens)

    def __call__(self) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        self.forward().backward()
        return self.model.positions.grad


class Models:
    """Models that differ in their body alone; all else, weights and tokens, they share."""

    def __init__(self, network: Transformer, setting: Setting) -> None:
        self.setting, network = setting, network.sized_for(setting)
        vocabulary = setting.size(VOCABULARY, 64)
        parts = network.make(Setting(setting.device))
        self.layers, self.norm = parts.layers, parts.norm
        place, width = setting.place, network.width
        self.embedding = nn.Embedding(vocabulary, width, **place)
        self.positions = nn.Parameter(0.02 * torch.randn(network.tokens, width, **place))
        self.head = nn.Linear(width, vocabulary, bias=False, **place)
        shape = (network.batch, network.tokens + 1)
        self.tokens = torch.randint(vocabulary, shape, device=setting.device)
        self.words = (
            f"{network.words}, causal, with head over {vocabulary} words and cross entropy, "
            "forward and backward without the optimiser"
        )

    def step(self, body: nn.Module, with_compiler: bool = False) -> LanguageStep:
        model = LanguageModel(self.embedding, self.positions, body, self.head)
        model.to(self.setting.device)
        run = compiled(model, self.setting) if with_compiler else model
        return LanguageStep(model, self.tokens, run)


def gpt_9x512(setting: Setting) -> Ways:
    """Learned scales, against the naive accumulator and against having none, each compiled."""
    models = Models(GPT_9x512, setting)
    layers, norm = models.layers, models.norm
    chain, naive = WithoutSum(layers, norm), ScaledLoop(layers, norm)
    fused = FusedACNStack(layers, norm, scales="learned")
    ways = Ways(models.words, counted=models.step(chain))
    ways.add(f"{NO_SUM}, compiled", models.step(chain, True))
    ways.add(f"{NAIVE_SUM}, compiled", models.step(naive, True), like=None)
    same = f"{NAIVE_SUM}, compiled"
    ways.add_ours(f"{FUSED}, compiled", models.step(fused, True), like=same)
    ways.add(NO_SUM, models.step(chain))
    ways.add(NAIVE_SUM, models.step(naive), like=same)
    ways.add_ours(FUSED, models.step(fused), like=same)
    ways.compare(
        "cost of the fused sum under torch.compile", f"{FUSED}, compiled", f"{NO_SUM}, compiled",
        1.0 if setting.on_gpu else None,
    )  # fmt: skip
    ways.compare("cost of the naive sum under torch.compile", same, f"{NO_SUM}, compiled")
    return ways


def gpt2_small(setting: Setting) -> Ways:
    models = Models(GPT2_SMALL, setting)
    layers, norm = models.layers, models.norm
    naive, fused = PlainLoop(layers, norm), FusedACNStack(layers, norm)
    residual = PlainResidual(layers, norm)
    ways = Ways(models.words)
    ways.add(NAIVE, models.step(naive))
    ways.add(f"{NAIVE}, compiled", models.step(naive, True))
    ways.add_ours(FUSED, models.step(fused))
    ways.add_ours(f"{FUSED}, compiled", models.step(fused, True))
    ways.add(RESIDUAL, models.step(residual), like=None)
    ways.add(f"{RESIDUAL}, compiled", models.step(residual, True), like=RESIDUAL)
    for against in (NAIVE, f"{NAIVE}, compiled", RESIDUAL, f"{RESIDUAL}, compiled"):
        ways.compare(f"{FUSED} against {against}", FUSED, against)
    ways.compare("both compiled", f"{FUSED}, compiled", f"{NAIVE}, compiled")
    return ways


GPT_9X512_CASES = (Case("gpt9x512_step", gpt_9x512, rounds=21),)
TRAIN_GPT = (Case("train_gpt2_small", gpt2_small, rounds=15),)
