"""Wirings in which a layer reads a mixture of all outputs before it: DenseNet, DenseFormer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acn_kernels.connection import Connection, Wiring
from acn_kernels.layer_step import step_of
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_depth


class HistoryStack(FusedACNStack):
    """``u_i = mix_i(x_0 .. x_i)``, ``x_{i+1} = f_{i+1}(u_i)``, output norm(u_L).

    Sub-network k puts out norm(u_k). ``mix_0`` is x_0 itself; ``mixers[i - 1]`` is mix_i, called
    with the list of outputs. Subclasses say what the mixers are and how a layer is entered.
    """

    _inner_alpha = 1.0  # whether blocks keep short connections of their own: 1 is none

    def __init__(
        self,
        layers: Sequence[nn.Module],
        norm: nn.Module | None,
        mixers: Sequence[nn.Module],
        *,
        rows=None,
        backend: str = "auto",
    ) -> None:
        super().__init__(layers, norm, rows=rows, backend=backend)
        self.mixers = nn.ModuleList(mixers)

    def forward(self, x: Tensor, *args, depth: int | None = None, **kwargs) -> Tensor:
        """norm(u_depth) of x's shape (or its selected rows)."""
        depth = check_depth(depth, len(self), True)
        return self.forward_intermediates(x, *args, indices=[depth], **kwargs)[0]

    def forward_intermediates(
        self,
        x: Tensor,
        *args,
        indices: Sequence[int] | None = None,
        norm: bool = True,
        **kwargs,
    ) -> list[Tensor]:
        wanted = self._checked_depths(indices)
        wiring = self._wiring(x)._replace(alpha=self._inner_alpha)
        outputs, found = [x], {}
        last = max(wanted, default=0)
        for k in range(last + 1):
            u = x if k == 0 else self.mixers[k - 1](outputs)
            if k in wanted:
                found[k] = self._head_norm(wiring.selected(u), u, norm)
            if k < last:
                outputs.append(self._entered(k, u, wiring, args, kwargs))
        return [found[k] for k in wanted]

    def connection_kind(self, wiring: Wiring) -> type[Connection]:
        return Connection

    def _entered(self, i: int, u: Tensor, wiring: Wiring, args, kwargs) -> Tensor:
        """x_{i+1} = f_{i+1}(u)."""
        kind, wiring = self.connection_kind(wiring), wiring._replace(rows=None)
        step = step_of(self.checkpoint)
        return step(u, None, kind, i, self[i], wiring, (), args, kwargs, False)[0]

    def advance(self, *args, **kwargs):
        raise TypeError(f"a {type(self).__name__} reads all outputs; it has no state (x, y)")

    finish = output = advance

    def _renumber(self, layers: list[nn.Module]) -> None:
        """As the list's own; mixers go with their layers, and none is made for another."""
        mixers = self._modules.get("mixers")
        if mixers is not None and len(layers) != len(mixers):
            kept = self._numbered()[: len(layers)]
            if [*map(id, layers)] != [*map(id, kept)]:
                raise ValueError(
                    f"a {type(self).__name__} of {len(mixers)} layers may lose the last ones, no "
                    "others, and gain none: each has a mixer of its own place"
                )
            self.mixers = mixers[: len(layers)]
        super()._renumber(layers)

    def __getitem__(self, i: int | slice) -> nn.Module:
        if not isinstance(i, slice):
            return super().__getitem__(i)
        kept = range(len(self))[i]
        if kept != range(len(kept)):
            raise ValueError(f"a {type(self).__name__} can be cut behind a layer, not before one")
        short = self.__new__(type(self))
        HistoryStack.__init__(
            short, list(self)[: len(kept)], self.norm, self.mixers[: len(kept)],
            rows=self.rows, backend=self.backend,
        )  # fmt: skip
        short.checkpoint = self.checkpoint
        short.training = short.mixers.training = self.training
        return short


class DenseNetStack(HistoryStack):
    """DenseNet-style: a layer reads all outputs side by side, projected back to the width D."""

    def __init__(self, layers, norm: nn.Module | None = None, *, width: int, **options) -> None:
        layers = list(layers)
        mixers = [_Projection(k + 1, width) for k in range(1, len(layers) + 1)]
        super().__init__(layers, norm, mixers, **options)


class DenseFormerStack(HistoryStack):
    """DenseFormer-style (arXiv 2402.02622): residual layers, each behind a learned weighted
    average of all outputs, which is at first the last output alone: a residual network."""

    _inner_alpha = 0.0

    def __init__(self, layers, norm: nn.Module | None = None, **options) -> None:
        layers = list(layers)
        mixers = [_Average(k + 1) for k in range(1, len(layers) + 1)]
        super().__init__(layers, norm, mixers, **options)

    def _entered(self, i, u, wiring, args, kwargs) -> Tensor:
        return u + super()._entered(i, u, wiring, args, kwargs)


class _Projection(nn.Module):
    """W [x_0; ..; x_i] + b: i + 1 outputs [.., D] to one."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(outputs * width, width)

    def forward(self, outputs: list[Tensor]) -> Tensor:
        return self.linear(torch.cat(outputs, dim=-1))


class _Average(nn.Module):
    """sum_j w_j x_j."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs))
        nn.init.ones_(self.weight[-1:])

    def forward(self, outputs: list[Tensor]) -> Tensor:
        return sum(w * x for w, x in zip(self.weight, outputs, strict=True))
