"""How (x, y) travels through a loop that hands on one tensor: that tensor knows its last term.

A converted block called by its model's own loop gets, and returns, what a head may read: y_i in a
pre-norm network, x_i + alpha (x_0 + .. + x_{i-1}) in a post-norm one. What else the next block
needs rides on that tensor as an attribute. So there is no state outside the forward pass: threads,
exceptions, nested calls and recomputation cannot mix anything up, and a tensor that lost it is
noticed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels.connection import MixedStream, Wiring, as_data
from acn_kernels.reference import sum_dtype
from acn_kernels.validation import are_counted, check_alpha

_ATTRIBUTE = "_acn_state"


class Chain:
    """What the blocks of one converted list share: alpha and granularity."""

    def __init__(self, alpha: float, granularity: str) -> None:
        self.alpha = alpha
        self.granularity = granularity

    @property
    def alpha(self) -> float:
        """1 is the ACN, 0 the residual network; a number in [0, 1]."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self._alpha = check_alpha(alpha)
        self.mix = as_data(self._alpha)

    def free_alpha(self) -> None:
        """From a device, where recorded steps read it, to where it goes with every device."""
        self.mix = as_data(self._alpha)

    @property
    def is_residual(self) -> bool:
        """alpha = 0 exactly: the blocks are what they were."""
        return self.mix is None and self._alpha == 0

    @property
    def wiring(self) -> Wiring:
        alpha = self._alpha if self.mix is None else self.mix
        return _CalledNorms(alpha=alpha, sublayers=self.granularity == "sublayer")


class _CalledNorms(Wiring):
    """In a foreign loop nothing follows a norm that it could be fused with."""

    def norm(self, x: Tensor, module: nn.Module | None) -> Tensor:
        return x if module is None else module(x)


class State(NamedTuple):
    """Between two blocks: the last layer's output x, and y, in the sum's dtype.

    y is None where the flowing tensor itself is that sum (pre-norm), or where there is no term yet
    (post-norm). version: PyTorch's count of the flowing tensor's changes in place, where it keeps
    one.
    """

    chain: Chain
    x: Tensor
    y: Tensor | None
    version: int | None = None


def state_of(flowing: Tensor, chain: Chain, first: bool) -> State:
    """The state that the block before left on ``flowing``; a chain's first block starts one.

    Raises:
        RuntimeError: another tensor than a converted block's output came in, or one that was
            changed in place, or whose state has lost its gradient.
    """
    if first:
        return State(chain, flowing, None)
    state = getattr(flowing, _ATTRIBUTE, None)
    if state is None or state.chain is not chain:
        raise RuntimeError(
            "a converted block got a tensor that is not the output of the block before it: a hook, "
            "a move to another device, offloading or code between the blocks made a new one. With "
            "alpha above 0 a block also needs the last layer's output, which rides on that tensor"
        )
    if state.version is not None and are_counted(flowing) and flowing._version != state.version:
        raise RuntimeError(
            "the output of a converted block was changed in place before the next block got it; "
            "with alpha above 0 that block also needs the last layer's output, which stayed as it "
            "was"
        )
    if flowing.requires_grad and not state.x.requires_grad:
        raise RuntimeError(
            "the gradient of the last layer's output is lost: reentrant checkpointing passes on "
            "that of returned tensors alone; a converted model takes use_reentrant=False"
        )
    return state


def flowing(out: Tensor, like: Tensor, state: State) -> Tensor:
    """``out`` in the dtype of ``like``, with ``state`` riding on it."""
    out = out.to(like.dtype)  # never x or y themselves, which must not refer to their own state
    version = out._version if are_counted(out) else None
    setattr(out, _ATTRIBUTE, state._replace(version=version))
    return out


class Flow(MixedStream):
    """The connection of a pre-norm block called by a foreign loop; y includes the term x."""

    def __init__(self, state: State, y: Tensor) -> None:
        super().__init__(state.chain.wiring, y=y)
        self._counted = True

    def enter(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """norm(u); x is already in y where it came with the state."""
        if not self._counted:
            self.y = wide_sum(self.y, x)
        self._counted = False
        self.u = self._mixed(x)
        return self.wiring.norm(self.u, norm)


def wide_sum(y: Tensor | None, x: Tensor) -> Tensor:
    """y + x in the sum's dtype; y None is zero."""
    wide = x.to(sum_dtype(x.dtype))
    return wide if y is None else y + wide


def post_norm_output(x: Tensor, y: Tensor, chain: Chain) -> Tensor:
    """x + alpha y, for the sum y of all terms before x."""
    if chain.mix is None:
        return wide_sum(y, x)
    return torch.add(x.to(y.dtype), chain.mix * y)
