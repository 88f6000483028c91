"""EarlyExit: each sample leaves at the first exit where the shared head is sure of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels.models import ImageClassifier
from acn_kernels.validation import check_depth


class ExitResult(NamedTuple):
    """logits [B, classes] and depth [B] int64, the number of layers each sample went through."""

    logits: Tensor
    depth: Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last axis, in nats, computed in at least fp32."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def first_exit(certainty: Tensor, exits: Sequence[int], threshold: float) -> Tensor:
    """[N] int64: the first of ``exits`` whose entropy in ``certainty`` [L+1, N] is below the
    threshold, else L."""
    last = len(certainty) - 1
    depth = torch.full((certainty.shape[1],), last, device=certainty.device)
    for k in sorted(exits, reverse=True):
        depth[certainty[k] < threshold] = k
    return depth


class EarlyExit(nn.Module):
    """Inference that stops each sample at the first exit with entropy below ``threshold``.

    At an exit the shared head reads norm(y_k) of the samples still under way; those that leave
    are taken out of the batch, the rest go on. An entropy of NaN is below nothing: such a sample
    runs to full depth.

    Args:
        model: a classifier of :mod:`acn_kernels.models`.
        exits: depths in [1, L-1] at which samples may leave; all leave at L.
        threshold: on the entropy, in nats (the paper's tau = 0.7).
        criterion: "entropy".

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """

    def __init__(
        self,
        model: ImageClassifier,
        exits: Sequence[int],
        threshold: float,
        criterion: str = "entropy",
    ) -> None:
        super().__init__()
        if criterion != "entropy":
            raise ValueError(f"criterion is {criterion!r}; it takes 'entropy'")
        if not threshold >= 0:
            raise ValueError(f"threshold is {threshold}; it takes a number of nats, at least 0")
        layers = len(model.blocks)
        for k in exits:
            if not 0 < check_depth(k, layers, True, "exits") < layers:
                raise ValueError(f"exits holds {k}; it takes depths from 1 to {layers - 1}")
        self.model = model
        self.exits = sorted(set(exits))
        self.threshold = threshold

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> ExitResult:
        """(logits, depth) of inputs [B, ...], in their order."""
        stack, layers = self.model.blocks, len(self.model.blocks)
        x, y = self.model.embed(inputs), None
        logits = torch.empty(0)
        depth = torch.full((len(inputs),), layers, device=inputs.device)
        live = torch.arange(len(inputs), device=inputs.device)
        start = 0
        for k in (*self.exits, layers):
            x, y = stack.advance(x, y, start=start, stop=k)
            start = k
            here = self.model.forward_head(stack.output(x, y, k))
            if logits.numel() == 0 and len(live) == len(inputs):
                logits = here.new_empty(len(inputs), here.shape[-1])
            leaving = torch.ones_like(live, dtype=torch.bool)
            if k < layers:
                leaving = entropy(here) < self.threshold
            logits[live[leaving]] = here[leaving]
            depth[live[leaving]] = k
            staying = ~leaving
            live = live[staying]
            if len(live) == 0:
                break
            if k < layers and len(live) < len(staying):
                x, y = x[staying], None if y is None else y[staying]
        return ExitResult(logits, depth)
