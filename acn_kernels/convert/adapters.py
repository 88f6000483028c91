"""What conversion needs to know of a block type: its norms, and what lies behind or before them."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from acn_kernels.connection import Connection, plus_share
from acn_kernels.convert.chain import Flow, State, flowing, post_norm_output, wide_sum

Branch = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class _Adapter:
    """The sublayers of a block type, in their order.

    Attributes:
        norms: for each sublayer the name of its norm in the block, dots allowed; None: no norm.
        branches: for each sublayer a function (block, h) -> tensor of h's shape: what the block
            computes there, without norm and without adding anything back. The first one also takes
            all other arguments of the block's forward.
        refuses: says why a particular block cannot be converted; None where it can.
    """

    norms: Sequence[str | None]
    branches: Sequence[Branch]
    refuses: Callable[[nn.Module], str | None] = lambda block: None

    def __post_init__(self) -> None:
        for name in ("norms", "branches"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # an adapter is hashable
        if len(self.norms) != len(self.branches) or not self.branches:
            raise ValueError(
                f"norms has {len(self.norms)} entries, branches {len(self.branches)}; an adapter "
                "takes one of each for every sublayer, and at least one"
            )
        for branch in self.branches:
            if not callable(branch):
                raise TypeError(f"branches holds {branch!r}; it takes functions (block, h)")

    def norms_of(self, block: nn.Module) -> list[nn.Module | None]:
        return [None if name is None else operator.attrgetter(name)(block) for name in self.norms]


class PreNorm(_Adapter):
    """Sublayers ``h + f(norm(h))``: ``f`` are the branches, ``norm`` the norms."""

    def layer(
        self, block: nn.Module, x: Tensor, connection: Connection, args: Sequence, kwargs: dict
    ) -> Tensor:
        """x_i of x_{i-1}: with two sublayers ``h = f1(norm1(u))``,
        ``m = f2(norm2(h + (1-alpha) u))`` and ``x_i = m + (1-alpha) h``; under granularity
        "sublayer" each is a layer of its own."""
        norms = self.norms_of(block)
        h = connection.enter(x, norms[0])
        h = self.branches[0](block, h, *args, **kwargs)
        for norm, branch in zip(norms[1:], self.branches[1:], strict=True):
            if connection.sublayers:
                h = branch(block, connection.enter(h, norm))
            else:
                h = connection.within(h, norm, functools.partial(branch, block))
        return h

    def step(
        self, block: nn.Module, y: Tensor, state: State, args: Sequence, kwargs: dict
    ) -> Tensor:
        """y_i of y_{i-1} and the state that came with it; the next state rides on the result."""
        connection = Flow(state, wide_sum(None, y) if state.y is None else state.y)
        x = self.layer(block, state.x, connection, args, kwargs)
        total = wide_sum(connection.y, x)
        return flowing(total, y, State(state.chain, x, None if total.dtype == y.dtype else total))


class PostNorm(_Adapter):
    """Sublayers ``norm(h + f(h))``: ``f`` are the branches, ``norm`` the norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if None in self.norms:
            raise ValueError(f"norms is {self.norms!r}; every sublayer of PostNorm takes a norm")

    def step(
        self, block: nn.Module, z: Tensor, state: State, args: Sequence, kwargs: dict
    ) -> Tensor:
        """``z_i = x_i + alpha (x_0 + .. + x_{i-1})``, from the state that came with z_{i-1}."""
        chain, h = state.chain, state.x
        y = wide_sum(state.y, h)
        for k, (norm, branch) in enumerate(zip(self.norms_of(block), self.branches, strict=True)):
            out = branch(block, h, *args, **kwargs) if k == 0 else branch(block, h)
            h = norm(out if chain.mix is None else plus_share(out, h, chain.mix))
            if chain.granularity == "sublayer" and k < len(self.branches) - 1:
                y = wide_sum(y, h)
        return flowing(post_norm_output(h, y, chain), z, State(chain, h, y))


Adapter = PreNorm | PostNorm
