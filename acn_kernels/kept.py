"""What is kept from one call to the next: what was found out about modules, stacked weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from acn_kernels import _extension
from acn_kernels.composition import Composition
from acn_kernels.hooks import hooks_on_all

_version = attrgetter("_version")  # counts the changes in place


class KeptAnswer:
    """The answer to a question about modules, kept while they are made of the same."""

    def __init__(self) -> None:
        self._answer: tuple[Composition, Callable, Any] | None = None

    def __reduce__(self) -> tuple:
        return type(self), ()  # a copy belongs to other modules

    def of(
        self, modules: Sequence[nn.Module], question: Callable[[Sequence[nn.Module]], Any]
    ) -> Any:
        """``question(modules)``, asked again only where it may have another answer."""
        if not calls_are_plain():
            return question(modules)
        kept = self._answer
        if kept is None or kept[1] != question or not kept[0].is_that_of(modules):
            kept = self._answer = Composition(modules), question, question(modules)
        return kept[2]

    def forget(self) -> None:
        self._answer = None


class OptimizerSteps:
    """Counts the steps of fused optimisers, and of others than PyTorch's own, from the first
    question on: their kernels may change weights without PyTorch's own count of it."""

    def __init__(self) -> None:
        self._steps = 0
        self._watching = False

    def count(self) -> int:
        if not self._watching:
            self._watching = True
            register_optimizer_step_post_hook(self._stepped)
        return self._steps

    @torch._disable_dynamo  # as torch.compiler.disable, without its seconds of imports beforehand
    def _stepped(self, optimizer: torch.optim.Optimizer, *_) -> None:
        own = type(optimizer).__module__.startswith("torch.optim.")
        if own and not any(group.get("fused") for group in optimizer.param_groups):
            return
        self._steps += 1
        extension = _extension.module()
        if extension is not None:
            extension.weights_changed()


optimizer_steps = OptimizerSteps()


class StackedParameters:
    """Parameters of L layers, each kind [L, ...] in one tensor.

    The tensors are kept between calls that record no gradient, and follow changes in place by
    PyTorch's own count of them, and the steps that :class:`OptimizerSteps` counts. Matrices come in
    the dtype that is asked for, as autocast does it.

    Args:
        kinds: for each kind the L parameters.
    """

    def __init__(self, kinds: Sequence[Sequence[Tensor]]) -> None:
        self._kinds = kinds
        self.parameters = [parameter for kind in kinds for parameter in kind]
        self._kept: tuple[list, list[Tensor]] | None = None

    def tensors(self, recorded: bool, matrices: torch.dtype | None = None) -> list[Tensor]:
        """One for each kind; gradients flow back through them where they are ``recorded``.
        ``matrices``: their dtype; None is their own."""
        if recorded or not can_be_kept(self.parameters[0]) or not self._counted:
            self._kept = None
            return self._stacked(matrices)
        state = [
            *(stream_of(self.parameters[0]), matrices, optimizer_steps.count()),
            *map(_version, self.parameters),
        ]
        kept = self._kept
        if kept is None or kept[0] != state:
            kept = self._kept = state, self._stacked(matrices)
        return kept[1]

    @functools.cached_property
    def _counted(self) -> bool:
        """Whether PyTorch counts the changes of all of them: it does not in inference mode's."""
        return not any(map(Tensor.is_inference, self.parameters))

    def _stacked(self, matrices: torch.dtype | None) -> list[Tensor]:
        if matrices is None:
            return [torch.stack(kind) for kind in self._kinds]
        # Autocast does not let the other half precision be stacked.
        with torch.autocast(self.parameters[0].device.type, enabled=False):
            stacked = [torch.stack(kind) for kind in self._kinds]
            return [x.to(matrices) if x.dim() > 2 else x for x in stacked]


def can_be_kept(x: Tensor) -> bool:
    """Whether what is computed of tensors like x now may serve later calls."""
    # A graph that somebody records has to compute all that it needs whenever it is replayed.
    return calls_are_plain() and not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def calls_are_plain() -> bool:
    """Whether operations run on tensors as they are: nobody traces, watches or transforms them."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or hooks_on_all()
    )


def stream_of(x: Tensor) -> int:
    """The stream that works on x now: another one would not wait for what this one has made."""
    return torch._C._cuda_getCurrentRawStream(x.device.index) if x.is_cuda else 0
