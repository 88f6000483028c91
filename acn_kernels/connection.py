"""How one layer is wired into the stack: what it reads, and how its input reaches the long sum.

A layer that owns the norm at its entry lets the stack fuse it with the long connection: it lists
its entry norms as ``entry_norms``, takes ``connection=None`` in its forward, turns it into the one
it works with by ``Connection.begin``, and passes its input through ``connection.enter(x, norm)``,
which returns norm(u) and sees to x's term of the sum. All other layers work too; the stack then
enters them without a norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels import functional, torch_ops
from acn_kernels.functional import Term
from acn_kernels.norm_spec import NormSpec
from acn_kernels.reference import sum_dtype
from acn_kernels.rows import RowSelection

__all__ = ["Connection"]

# In place of a scale: the input of the network, where it is no term of the sum.
OMITTED = "omitted"
Scale = Tensor | str | None


def has_entry_norms(layer: nn.Module) -> bool:
    """Whether the layer lists ``entry_norms``: hasattr, without the exception that nn.Module
    raises inside it for each layer that has none, which costs as much as a small layer."""
    own = type(layer)
    # Wrappers (of checkpointing, of FSDP) look further, in the layer that they wrap.
    looks_here_alone = own.__getattr__ is nn.Module.__getattr__
    listed_nowhere = (
        not hasattr(own, "entry_norms")
        and "entry_norms" not in layer.__dict__
        and "entry_norms" not in layer._modules
    )
    return not (looks_here_alone and listed_nowhere) and hasattr(layer, "entry_norms")


class Wiring(NamedTuple):
    """What all connections of one forward pass share."""

    alpha: float | Tensor = 1.0  # a 0-dim tensor between the ends; [L], where layers have their own
    sublayers: bool = False
    detach: bool = False
    rows: RowSelection | None = None
    backend: str = "auto"
    splits: bool = False  # what the sum leaves of a term, (1 - a_i) x_i, goes around the next layer

    @property
    def is_acn(self) -> bool:
        """alpha = 1 exactly: no short connection anywhere."""
        return isinstance(self.alpha, float) and self.alpha == 1

    def of_layer(self, i: int) -> Wiring:
        """This wiring with the alpha of layers[i]."""
        if isinstance(self.alpha, float) or self.alpha.dim() == 0:
            return self
        return self._replace(alpha=self.alpha[i])

    def selected(self, x: Tensor) -> Tensor:
        """The rows of x that y keeps."""
        return x if self.rows is None else x.index_select(-2, self.rows.index)

    def norm(self, x: Tensor, module: nn.Module | None) -> Tensor:
        """The norm of x, by the fused kernel where the module is one it knows."""
        if module is None:
            return x
        spec = NormSpec.of(module)
        return module(x) if spec is None else functional.norm(x, spec, self.backend)


class Connection:
    """A layer on its own: its input goes nowhere else. Base of the wirings below."""

    sums = False  # whether what enters is a term of the long sum

    def __init__(
        self,
        wiring: Wiring | None = None,
        scales: Sequence[Scale] = (),
        y: Tensor | None = None,
        closing: bool = False,
    ) -> None:
        self._made_of = (wiring, scales, y, closing)
        self._begun: bool | None = None  # and whether gradients were recorded then
        self.wiring = wiring or Wiring()
        self.scales = list(scales)  # of the terms still to enter; torch.compile follows no iterator
        self.y = y
        self.u: Tensor | None = None
        self._scale: Scale = None  # of the term that entered last
        self._around: Tensor | None = None  # what goes around the layer that is running
        self.closing = closing  # no layer follows: nobody reads the rows that y does not keep

    @staticmethod
    def begin(connection: Connection | None) -> Connection:
        """What a layer works with, of the ``connection`` that it is called with.

        Activation checkpointing around a layer calls it again in the backward pass, with the same
        arguments: it then works with a connection as new, whose results nobody reads.

        Raises:
            RuntimeError: a layer begins twice in one forward pass, or in a backward pass what it
                began without gradients, as reentrant checkpointing does.
        """
        if connection is None:
            return Connection()
        recorded = torch.is_grad_enabled()
        if recorded and connection._begun is not None:
            return connection._again()
        connection._begun = recorded  # without gradients, one connection serves many layers
        return connection

    def _again(self) -> Connection:
        in_backward = torch._C._current_graph_task_id() >= 0
        if self._begun and not in_backward:
            raise RuntimeError(
                "a layer began its connection twice; of the blocks inside one layer of a stack, "
                "only the first may be called with the layer's connection"
            )
        if in_backward and not self._begun:
            raise RuntimeError(
                "the gradients of the long connection are lost: reentrant checkpointing passes on "
                "those of returned tensors alone; a layer of a stack takes use_reentrant=False"
            )
        return type(self)(*self._made_of) if in_backward else self

    @property
    def carried(self) -> list[Term] | Tensor | None:
        """What the stack takes on to the next layer: the running sum, or this layer's terms."""
        return self.y

    @property
    def sublayers(self) -> bool:
        """Whether attention and MLP of a block are layers of their own (granularity)."""
        return self.wiring.sublayers

    def take_read_rows(self) -> RowSelection | None:
        """The rows of the layer's output that anybody reads; None is all.

        The last layer executed may compute these alone. By asking, it promises to: from here on
        what it hands on, and puts out, is [..., R, D].
        """
        if not self.closing or not self.wiring.is_acn:
            return None
        rows = self.wiring.rows
        if rows is not None and self._around is not None:
            self._around = self.wiring.selected(self._around)
        self.wiring, self.closing = self.wiring._replace(rows=None), False
        return rows

    def enter(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """norm(u) for the layer whose predecessor put out x."""
        self.u = x
        u = self.detached(x)
        return u if norm is None else self.wiring.norm(u, norm)

    def enter_with(self, x: Tensor, x_0: Tensor, norm: nn.Module | None) -> Tensor:
        """norm(u + x_0): the network's input once more, ``x_i = f_i(x_{i-1} + x_0)``."""
        self.u = self.enter(x, None) + self.detached(x_0)
        return self.wiring.norm(self.u, norm)

    def next_sublayer(self, h: Tensor) -> Tensor:
        """h for the second half of a post-norm block: a term of its own where sublayers are layers,
        else only what goes around that half too."""
        if self.sublayers:
            return self.enter(h, None)
        if self.wiring.splits:
            self._around = h
        return h

    def leave(self, out: Tensor) -> Tensor:
        """``out + (1 - a) x`` of the layer that x entered, where the wiring splits; else out.

        The stack does this to every layer's output. A post-norm block does it to each half of its
        own, before it norms.
        """
        around, self._around = self._around, None
        if around is None or self._scale is None:
            return out
        if isinstance(self._scale, str):  # OMITTED
            return out + around
        wide = around.to(sum_dtype(around.dtype))
        return out + ((1 - self._scale) * wide).to(around.dtype)

    def _next_scale(self) -> Scale:
        """That of the term that enters now."""
        if not self.scales:
            raise RuntimeError(
                "a layer entered its connection too often; it has one term in the long sum, or "
                "under granularity 'sublayer' one for each of its entry_norms"
            )
        return self.scales.pop(0)

    def _split(self, x: Tensor, scale: Scale) -> Tensor:
        """The term x, with what goes around the sublayer it comes from; the rest of it goes around
        the next one."""
        self.u = x = self.leave(x)
        self._scale, self._around = scale, self.detached(x)
        return x

    def within(self, h: Tensor, norm: nn.Module, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Second half of a pre-norm block: ``m = f(norm(h + (1-alpha) u))``, ``m + (1-alpha) h``.

        At alpha = 1 nothing is added back (the paper's block), at alpha = 0 the block is residual
        once the stack adds its output to y. Where the wiring splits, (1 - a) of u and of h go
        around the two halves.
        """
        alpha = self.wiring.alpha
        if self.wiring.splits:
            h = self.leave(h)
            self._around = h
        if self.wiring.is_acn:
            return f(self.wiring.norm(h, norm))
        m = f(self.wiring.norm(plus_share(h, self.detached(self.u), alpha), norm))
        return plus_share(m, h, alpha)

    def detached(self, u: Tensor) -> Tensor:
        """u without its gradient, where the layers train on the direct gradient alone."""
        return u.detach() if self.wiring.detach else u


class LongConnection(Connection):
    """alpha = 1 with gradients: each x forks to the next layer and to a term of the sum."""

    sums = True

    def __init__(
        self, wiring: Wiring, scales: Sequence[Scale], y: None = None, closing: bool = False
    ) -> None:
        super().__init__(wiring, scales, y, closing)
        self.terms: list[Term] = []

    @property
    def carried(self) -> list[Term]:
        return self.terms

    def enter(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        self.u, scale, spec = x, self._next_scale(), NormSpec.of(norm)
        if self.wiring.splits:
            x = self._split(x, scale)
        if isinstance(scale, str):  # OMITTED
            return super().enter(x, norm)
        if spec is None or self.wiring.detach:
            self.terms.append(functional.tap(x, scale, self.wiring.rows))
            return super().enter(x, norm)
        h, term = functional.fork(x, spec, scale, self.wiring.rows, self.wiring.backend)
        self.terms.append(term)
        return h


class RunningSum(Connection):
    """alpha = 1 without gradients: the sum runs along, updated in place."""

    sums = True

    def enter(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        self.u, scale, spec = x, self._next_scale(), NormSpec.of(norm)
        wiring = self.wiring
        if wiring.splits:
            x = self._split(x, scale)
        if isinstance(scale, str):  # OMITTED
            return wiring.norm(x, norm)
        if spec is None:
            # Without a norm that is known only the sum is left to compute.
            self.y = torch_ops.add_into(self.y, wiring.selected(x), scale)
            return wiring.norm(x, norm)
        h, self.y = functional.accumulate_norm(
            x, self.y, spec, scale, 1.0, wiring.rows, wiring.backend
        )
        return h


class MixedStream(Connection):
    """Any alpha, with or without gradients: ``u = alpha x + (1-alpha) y``, y kept functional."""

    sums = True

    def enter(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        scale = self._next_scale()
        if self.wiring.splits:
            x = self._split(x, scale)
        term = x if not self.wiring.is_acn else self.wiring.selected(x)
        self.y = add_term(self.y, term, scale)
        return super().enter(self._mixed(x), norm)

    def _mixed(self, x: Tensor) -> Tensor:
        alpha = self.wiring.alpha
        if isinstance(alpha, float):
            return x if self.wiring.is_acn else self.y.to(x.dtype)
        return torch.lerp(self.y, x.to(self.y.dtype), alpha.to(self.y.dtype)).to(x.dtype)


def as_data(alpha: float | tuple[float, ...]) -> Tensor | None:
    """alpha as a tensor, 0-dim for one number between the ends, so that annealing recompiles
    nothing; None at the ends, which are code of their own."""
    if not isinstance(alpha, tuple) and not 0 < alpha < 1:
        return None
    # On the CPU even where the default device is "meta", as in from_pretrained of transformers.
    with torch.inference_mode(False):  # a training may follow
        return torch.tensor(alpha, dtype=torch.float64, device="cpu")


def add_term(y: Tensor | None, x: Tensor, scale: Scale) -> Tensor:
    """``y + scale * x`` in the sum's dtype; y None is zero."""
    if isinstance(scale, str):  # OMITTED
        return torch.zeros_like(x, dtype=sum_dtype(x.dtype)) if y is None else y
    if scale is None and y is not None:
        return y + x
    wide = x.to(sum_dtype(x.dtype))
    term = wide if scale is None else wide * scale
    return term if y is None else y + term


def plus_share(x: Tensor, shortcut: Tensor, alpha: float | Tensor) -> Tensor:
    """x + (1-alpha) * shortcut in x's dtype; alpha is 0.0 or a tensor between the ends."""
    if isinstance(alpha, float):
        return x + shortcut
    if x.dtype == shortcut.dtype == sum_dtype(x.dtype):
        return torch.addcmul(x, shortcut, (1 - alpha).to(x.dtype))
    # A device would round alpha to shortcut's dtype; one on the CPU is a number.
    if alpha.device.type != "cpu":
        shortcut = shortcut.to(sum_dtype(shortcut.dtype))
    return x + ((1 - alpha) * shortcut).to(x.dtype)
