"""What a training minimises: the final output alone, or earlier ones with it.

A loss is called with (model, images, labels, step) and returns a scalar. Those that hold
parameters of their own (branches) are nn.Modules, and are trained with the model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acn_kernels.blocks import PostNormStack
from acn_kernels.convert.block import ConvertedBlock
from acn_kernels.convert.conversion import chains
from acn_kernels.models import ImageClassifier
from acn_kernels.reference import sum_dtype
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_size

__all__ = [
    "BranchLoss",
    "DistillationLoss",
    "LayerSkipLoss",
    "SharedHeadLoss",
    "Step",
    "deep_supervision",
    "final_loss",
    "layer_dropout",
    "rising_weights",
]


class Step(NamedTuple):
    """Which step of how many this is."""

    index: int
    total: int


Loss = Callable[[ImageClassifier, Tensor, Tensor, Step], Tensor]


def final_loss(model: ImageClassifier, images: Tensor, labels: Tensor, step: Step) -> Tensor:
    """Cross-entropy of the output."""
    return F.cross_entropy(model(images), labels)


def rising_weights(layers: int) -> Tensor:
    """Weights [L] of the sub-networks 1 .. L that rise linearly with depth and add up to one:
    ``2 k / (L (L+1))`` (the paper's, Table 7)."""
    return torch.arange(1, layers + 1) * (2 / (layers * (layers + 1)))


class SharedHeadLoss:
    """``sum_k w_k CE(head(y_k))`` over the sub-networks 1 .. L, all through the one head.

    With :func:`rising_weights`: the shared-head early exit of the paper's Table 7, and its
    Aligned baseline.

    Args:
        weights: [L]; those that are zero cost nothing.
    """

    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        self.weights = [float(w) for w in weights]

    def __call__(self, model, images: Tensor, labels: Tensor, step: Step) -> Tensor:
        if len(self.weights) != len(model.blocks):
            raise ValueError(
                f"weights has {len(self.weights)} entries; "
                f"it takes one for each of {len(model.blocks)} layers"
            )
        depths = [k for k, w in enumerate(self.weights, 1) if w]
        sums = model.forward_intermediates(images, indices=depths)
        return sum(
            self.weights[k - 1] * F.cross_entropy(model.forward_head(y), labels)
            for k, y in zip(depths, sums, strict=True)
        )


class DistillationLoss:
    """``(1-w) CE(z, labels) + w T^2 KL(softmax(z_teacher / T) || softmax(z / T))`` of the logits z:
    the labels, and what a trained network makes of the same inputs (Hinton et al., arXiv
    1503.02531, section 2).

    Args:
        teacher: a classifier of the same inputs and classes; it is in eval mode, and learns
            nothing.
        weight: w, in [0, 1]. temperature: T > 0, of both softmaxes.
        augment: makes of a batch of inputs the one that teacher and student both see (Beyer et
            al., arXiv 2106.05237); None leaves it.

    Raises:
        ValueError: weight or temperature is out of its range.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: float = 0.5,
        temperature: float = 2.0,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight is {weight}; it takes a number in [0, 1]")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it takes a number above 0")
        self.teacher = teacher.eval()
        self.weight, self.temperature, self.augment = weight, temperature, augment

    def __call__(self, model, images: Tensor, labels: Tensor, step: Step) -> Tensor:
        if self.augment is not None:
            images = self.augment(images)
        with torch.no_grad():
            told = self._softened(self.teacher(images))
        logits = model(images)
        apart = F.kl_div(self._softened(logits), told, reduction="batchmean", log_target=True)
        of_labels = (1 - self.weight) * F.cross_entropy(logits, labels)
        return of_labels + self.weight * self.temperature**2 * apart

    def _softened(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits.to(sum_dtype(logits.dtype)) / self.temperature, dim=-1)


class BranchLoss(nn.Module):
    """The final loss plus that of branches with heads of their own, which read the pooled sums.

    The paper's Table 7: branches at layers 4, 8, 12 with weights 0.8, 0.6, 0.4.

    Args:
        depths: of the branches. weights: of their losses.
    """

    def __init__(
        self, width: int, classes: int, depths: Sequence[int], weights: Sequence[float]
    ) -> None:
        super().__init__()
        self.depths, self.weights = list(depths), list(weights)
        if len(self.depths) != len(self.weights):
            raise ValueError(f"weights has {len(self.weights)} entries; depths {len(self.depths)}")
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in self.depths)

    def forward(self, model, images: Tensor, labels: Tensor, step: Step) -> Tensor:
        *sums, last = model.forward_intermediates(images, indices=[*self.depths, -1])
        loss = F.cross_entropy(model.forward_head(last), labels)
        for y, head, weight in zip(sums, self.heads, self.weights, strict=True):
            pooled = model.forward_head(y, pre_logits=True)
            loss = loss + weight * F.cross_entropy(head(pooled), labels)
        return loss

    @torch.no_grad()
    def logits_by_depth(self, model, images: Tensor) -> Tensor:
        """[branches + 1, B, classes]: of every branch, then of the model's own head."""
        *sums, last = model.forward_intermediates(images, indices=[*self.depths, -1])
        branches = [
            head(model.forward_head(y, pre_logits=True))
            for y, head in zip(sums, self.heads, strict=True)
        ]
        return torch.stack([*branches, model.forward_head(last)])


def deep_supervision(width: int, classes: int, layers: int, weight: float = 0.3) -> BranchLoss:
    """A classifier of its own at every layer below the last (Lee et al., arXiv 1409.5185), all
    with the same weight; after the training they are thrown away."""
    return BranchLoss(width, classes, range(1, layers), [weight] * (layers - 1))


class LayerSkipLoss:
    """LayerSkip (arXiv 2404.16710), for residual networks: layers are dropped sample by sample,
    the upper ones more often and more so as training goes on, and sub-networks are trained through
    the one head, every ``rotation``-th in turn and the last one always.

    Layer l of 0 .. L-1 is dropped with probability ``p_max (2^(l/(L-1)) - 1) (2^(t/(T-1)) - 1)``;
    its sub-network weighs ``e_scale (0 + .. + l)``, the last one ``L-1 + e_scale (0 + .. + L-2)``,
    normalised over those that take part.
    """

    def __init__(self, p_max: float = 0.1, e_scale: float = 0.2, rotation: int = 4) -> None:
        if not 0 <= p_max < 1:
            raise ValueError(f"p_max is {p_max}; it takes a number from 0 to below 1")
        if not 0 <= e_scale < math.inf:
            raise ValueError(f"e_scale is {e_scale}; it takes a number from 0")
        check_size("rotation", rotation, 1)
        self.p_max, self.e_scale, self.rotation = p_max, e_scale, rotation

    def drop_probabilities(self, layers: int, step: Step) -> list[float]:
        growth = 2 ** (step.index / max(step.total - 1, 1)) - 1
        rise = [2 ** (layer / max(layers - 1, 1)) - 1 for layer in range(layers)]
        return [self.p_max * growth * r for r in rise]

    def exit_weights(self, layers: int, step: Step) -> list[float]:
        """[L], zero where the sub-network does not take part in this step."""
        weights = [self.e_scale * math.comb(layer + 1, 2) for layer in range(layers - 1)]
        weights.append(layers - 1 + self.e_scale * math.comb(layers - 1, 2) if layers > 1 else 1.0)
        turn = step.index % self.rotation
        taking_part = [
            w if layer == layers - 1 or layer % self.rotation == turn else 0.0
            for layer, w in enumerate(weights)
        ]
        return [w / sum(taking_part) for w in taking_part]

    def __call__(self, model, images: Tensor, labels: Tensor, step: Step) -> Tensor:
        layers = len(model.blocks)
        with layer_dropout(model.blocks, self.drop_probabilities(layers, step)):
            exits = SharedHeadLoss(self.exit_weights(layers, step))
            return exits(model, images, labels, step)


@contextlib.contextmanager
def layer_dropout(
    stack: FusedACNStack | nn.ModuleList, probabilities: Sequence[float]
) -> Iterator[None]:
    """Inside, layer l of a residual stack, or of a list of converted blocks, is passed by for a
    sample with ``probabilities[l]``.

    Raises:
        ValueError: the stack is not residual: without its short connection a dropped layer would
            take all layers above with it; or its granularity is "sublayer".
    """
    alphas = {chain.alpha for chain in chains(stack)} or {stack.alpha}
    if alphas != {0}:
        raise ValueError(f"alpha is {max(alphas)}; layers are dropped in residual networks, at 0")
    if getattr(stack, "granularity", "block") == "sublayer":
        raise ValueError("granularity is 'sublayer'; layers are dropped whole, at 'block'")
    in_stack = isinstance(stack, FusedACNStack) and not isinstance(stack, PostNormStack)
    hooks = [
        # Ahead of the hooks by which transformers collects hidden states.
        layer.register_forward_hook(_dropping(p, in_stack), prepend=True, with_kwargs=True)
        for layer, p in zip(stack, probabilities, strict=True)
        if p
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _dropping(p: float, in_stack: bool):
    def hook(layer: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
        kept = torch.rand(len(out), *[1] * (out.dim() - 1), device=out.device) >= p
        # What layers put out for a stack is what they add; for another loop it is the sum.
        if in_stack and ("connection" in kwargs or not isinstance(layer, ConvertedBlock)):
            return out * kept.to(out.dtype)
        return torch.where(kept, out, args[0] if args else kwargs[layer._acn_input])

    return hook
