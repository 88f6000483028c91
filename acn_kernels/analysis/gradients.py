"""gradients: what reaches each layer's weights directly, and what through the layers above.

The paper's decomposition (Table 1): full gradient FG = direct gradient DG + network-mediated
gradient NG. The DG goes from the sum straight down the layer's own long connection; the NG is all
that comes through later layers. In a residual network, whose stream is the same sum, the DG takes
the path of identities alone; in a feed-forward network only the last layer has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acn_kernels.analysis.results import Curves, Grid
from acn_kernels.blocks import FeedForwardStack
from acn_kernels.terms import Observed, observed, stack_of

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Gradients:
    """For every layer its weights' gradients, each one flat vector; norms [L] are Euclidean."""

    direct: list[Tensor]
    mediated: list[Tensor]
    full: list[Tensor]

    @property
    def direct_norms(self) -> Tensor:
        return _norms(self.direct)

    @property
    def mediated_norms(self) -> Tensor:
        return _norms(self.mediated)

    @property
    def full_norms(self) -> Tensor:
        return _norms(self.full)

    @property
    def ratio(self) -> Tensor:
        """|DG| / |FG| [L]; NaN where a layer gets no gradient at all."""
        return self.direct_norms / self.full_norms

    def curves(self) -> Curves:
        """The three norms and the ratio by layer, 1 .. L."""
        values = {
            "DG": self.direct_norms,
            "NG": self.mediated_norms,
            "FG": self.full_norms,
            "DG/FG": self.ratio,
        }
        return Curves("gradients", "layer", range(1, len(self.full) + 1), "norm", values)

    def __str__(self) -> str:
        return str(self.curves())


def gradients(
    model: nn.Module, batch: tuple[Tensor, Tensor], loss: Loss = F.cross_entropy
) -> Gradients:
    """DG, NG and FG of every layer's weights on one batch (inputs, targets).

    Exact, from the backward pass of the very layers: DG + NG = FG to rounding. The ``.grad`` of
    the parameters stays as it is, and the model in the mode it is in.

    Args:
        model: an nn.Module that calls one FusedACNStack, of any alpha, or a FeedForwardStack.
        loss: of (the model's output, targets), a scalar.

    Raises:
        TypeError: the model holds no such stack, or several.
        ValueError: no parameter of the stack takes gradients, or one belongs to several layers.
    """
    inputs, targets = batch
    stack = stack_of(model)
    layers = [[p for p in layer.parameters() if p.requires_grad] for layer in stack]
    if not any(layers):
        raise ValueError("model has no layer with parameters that take gradients")
    if len({p for layer in layers for p in layer}) < sum(map(len, layers)):
        raise ValueError("model has layers that share a parameter; it takes layers of their own")
    with torch.enable_grad(), observed(stack) as seen:
        value = loss(model(inputs), targets)
    last_alone = isinstance(stack, FeedForwardStack)
    found = _decomposed(value, seen, layers, last_alone)
    return Gradients(*([_flat(layer) for layer in kind] for kind in found))


def gradients_by_step(found: Sequence[Gradients]) -> dict[str, Grid]:
    """Heat maps, layers x steps, of "DG", "NG", "FG" and "DG/FG", from what :func:`gradients`
    found at successive steps.

    Raises:
        ValueError: ``found`` is empty.
    """
    if not found:
        raise ValueError("found is empty; it takes the Gradients of at least one step")
    steps = [one.curves().values for one in found]
    return {
        name: Grid(name, "layer", "step", "norm", torch.stack([step[name] for step in steps], 1))
        for name in steps[0]
    }


def _decomposed(
    value: Tensor, seen: Observed, layers: Sequence[list[nn.Parameter]], last_alone: bool
):
    """(DG, NG, FG), each by layer a list of tensors like the layer's parameters.

    ``last_alone``: only the last output has a long connection (a feed-forward network).
    """
    (g,) = _pulled(value, [seen.y])
    flat = [p for layer in layers for p in layer]
    full = dict(zip(flat, _pulled(value, flat), strict=True))
    direct = {p: torch.zeros_like(p) for p in flat}
    mediated = dict(direct)
    unseen = [set(layer) for layer in layers]
    for output in seen.outputs:
        here = [] if output.layer < 0 else list(unseen[output.layer])
        if not here or not output.x.requires_grad:
            continue
        (total,) = _pulled(value, [output.x])
        below = torch.zeros_like(total)
        if output is seen.outputs[-1] or not last_alone:
            (below,) = _pulled(output.term, [output.x], g)
        # A parameter belongs to the first output that it makes; what it sends through a later
        # output of the same layer (attention through the MLP) comes from above that first one.
        ours = torch.autograd.grad(output.x, here, below, retain_graph=True, allow_unused=True)
        for p, of_p in zip(here, ours, strict=True):
            if of_p is not None:
                direct[p] = of_p
                unseen[output.layer].discard(p)
        made = [p for p, of_p in zip(here, ours, strict=True) if of_p is not None]
        mediated |= dict(zip(made, _pulled(output.x, made, total - below), strict=True))
    return [[[kind[p] for p in layer] for layer in layers] for kind in (direct, mediated, full)]


def _pulled(out: Tensor, of: Sequence[Tensor], g: Tensor | None = None) -> list[Tensor]:
    """Gradients of ``out`` weighed by g, zeros where it does not depend on one."""
    if not out.requires_grad or not of:
        return [torch.zeros_like(x) for x in of]
    found = torch.autograd.grad(out, of, g, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(of, found, strict=True)]


def _flat(layer: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in layer]) if layer else torch.zeros(0)


def _norms(vectors: list[Tensor]) -> Tensor:
    return torch.stack([vector.double().norm().cpu() for vector in vectors])


class GradientHistory:
    """Full-gradient norms of every layer over training, from the ``.grad`` that steps leave.

    ``history.note()`` after each backward pass; ``history.next_column()`` closes a step or an
    epoch, whose norms are the means of what was noted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [list(layer.parameters()) for layer in stack_of(model)]
        # Changed in place alone, so that a recorded step can go on noting.
        device = next(model.parameters()).device
        self._sum = torch.zeros(len(self._layers), dtype=torch.float64, device=device)
        self._noted = torch.zeros((), dtype=torch.float64, device=device)
        self.columns: list[Tensor] = []

    @torch.no_grad()
    def note(self) -> None:
        norms = [self._sum.new_zeros(())] * len(self._layers)
        for i, layer in enumerate(self._layers):
            grads = [p.grad for p in layer if p.grad is not None]
            if grads:
                norms[i] = torch.stack(torch._foreach_norm(grads, dtype=torch.float64)).norm()
        self._sum += torch.stack(norms)
        self._noted += 1

    def next_column(self) -> None:
        if self._noted > 0:
            self.columns.append((self._sum / self._noted).cpu())
            self._sum.zero_()
            self._noted.zero_()

    def grid(self, column_label: str = "epoch") -> Grid:
        """The heat map of layers x epochs of the paper's Fig. 2.

        Raises:
            ValueError: no column has been closed.
        """
        if not self.columns:
            raise ValueError("nothing was noted; call note() after a backward pass")
        values = torch.stack(self.columns, dim=1)
        return Grid("gradient norms", "layer", column_label, "norm", values)
