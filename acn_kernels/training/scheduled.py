"""A model that follows schedules: which layers take part, which learn, and their alpha."""

from __future__ import annotations

import torch
from torch import nn

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.convert.anneal import holders_of_alpha
from acn_kernels.convert.chain import Chain
from acn_kernels.models import ImageClassifier
from acn_kernels.stack import FusedACNStack
from acn_kernels.training.schedules import BottomUpAlpha, DepthSchedule, FreezeSchedule


class ScheduledModel:
    """``model`` in training, and ``network``, that of the layers which take part now.

    Args:
        alpha: of the model's stack, or of its converted blocks; a BottomUpAlpha, that of every
            layer in a stack.
        depth: how many of the layers take part.
        freeze: how many of the lowest ones, with all that lies below them, do not learn.
        recorded: whether steps are recorded and replayed. They find alpha between its ends in a
            tensor on the model's device, as long as the training lasts.

    Raises:
        TypeError: a BottomUpAlpha is given for a model without a stack, or a FreezeSchedule for
            one of which it is not known what lies below its blocks.
        ValueError: the stages of ``depth`` are out of order, or a share is not in [0, 1].
    """

    def __init__(
        self,
        model: ImageClassifier,
        alpha: AlphaSchedule | BottomUpAlpha | None = None,
        depth: DepthSchedule | None = None,
        freeze: FreezeSchedule | None = None,
        recorded: bool = False,
    ) -> None:
        if isinstance(alpha, BottomUpAlpha) and not isinstance(model.blocks, FusedACNStack):
            raise TypeError("alpha is a BottomUpAlpha; it takes a model with a FusedACNStack")
        if freeze is not None and not isinstance(model, ImageClassifier):
            raise TypeError(
                f"model is a {type(model).__name__}; a FreezeSchedule takes an image classifier of "
                "acn_kernels.models"
            )
        self.model = self.network = model
        self.alpha = alpha.checked() if isinstance(alpha, BottomUpAlpha) else alpha
        self.freeze = None if freeze is None else freeze.checked()
        self.depth = None if depth is None else depth.checked()
        self._frozen = 0  # layers
        self._held: list[nn.Parameter] = []  # of those, what would learn without the schedule
        self._recorded = recorded
        self._holders: list[Chain | FusedACNStack] = []  # of the alpha that a schedule sets
        if self.alpha is not None:
            self._hold_alpha()

    @property
    def state(self) -> tuple:
        """What a step depends on beside its data and the numbers in tensors."""
        ends = tuple(None if held.mix is not None else held.alpha for held in self._holders)
        return self.network, self._frozen, ends

    def follow(self, progress: float) -> None:
        """To where the schedules are after the share ``progress`` of the training."""
        layers = len(self.model.blocks)
        if self.depth is not None:
            taking_part = self.depth.at(progress, layers)
            if taking_part != len(self.network.blocks):
                self.network = self.model.truncate(taking_part)
                if self.alpha is not None:
                    self._hold_alpha()
        if self.alpha is not None:
            self._set_alpha(progress)
        frozen = 0 if self.freeze is None else self.freeze.at(progress, layers)
        if frozen != self._frozen:
            self._freeze(frozen)

    def finish(self) -> None:
        """At the end of the training: the last alpha, and nothing frozen any more."""
        if self.alpha is not None:
            self._set_alpha(1.0)
            self._keep_alpha_on(None)
        self._freeze(0)

    def gather_gradients(self) -> None:
        """After a backward pass: the learned scales of a cut network are a parameter of its own, in
        the memory of the model's; what it got belongs to that."""
        own, whole = (getattr(m.blocks, "scales", None) for m in (self.network, self.model))
        if own is whole or not isinstance(own, nn.Parameter) or own.grad is None:
            return
        whole.grad = nn.functional.pad(own.grad, (0, len(whole) - len(own)))
        own.grad = None

    def _freeze(self, layers: int) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)
        # Without a gradient below them, autograd ends where the frozen layers end.
        lowest = tuple(f"blocks.{i}." for i in range(layers))
        self._held = [
            parameter
            for name, parameter in (self.model.named_parameters() if layers else ())
            if parameter.requires_grad
            and (name.startswith(lowest) or not name.startswith(("blocks.", "head.")))
        ]
        for parameter in self._held:
            parameter.requires_grad_(False)
        self._frozen = layers

    def _hold_alpha(self) -> None:
        networks = {self.model, self.network}
        self._holders = [held for network in networks for held in holders_of_alpha(network)]
        if self._recorded:
            self._keep_alpha_on(next(self.model.parameters()).device)

    def _keep_alpha_on(self, device: torch.device | None) -> None:
        for held in self._holders:
            held.keep_alpha_on(device)

    def _set_alpha(self, progress: float) -> None:
        if isinstance(self.alpha, BottomUpAlpha):
            of_layers = self.alpha.at(progress, len(self.model.blocks))
            for stack in self._holders:
                stack.alpha = of_layers[: len(stack)]
        else:
            for held in self._holders:
                held.alpha = self.alpha.at(progress)
