"""A model that follows schedules: which layers take part, which learn, and their alpha."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.convert.anneal import holders_of_alpha
from acn_kernels.convert.chain import Chain
from acn_kernels.convert.stack import ConvertedStack
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
        recorded: whether steps are recorded and replayed. They find alpha between its ends in
            tensors on the model's device, which :meth:`follow` changes in place: between a forward
            and its backward pass, it then must not be called.

    Raises:
        TypeError: a schedule is of another kind; a BottomUpAlpha is given for a model without a
            stack, a DepthSchedule for one that cannot be truncated, or a FreezeSchedule for one of
            which it is not known what lies below its blocks.
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
        for name, given, kinds in (
            ("alpha", alpha, (AlphaSchedule, BottomUpAlpha)),
            ("depth", depth, (DepthSchedule,)),
            ("freeze", freeze, (FreezeSchedule,)),
        ):
            if not isinstance(given, (*kinds, type(None))):
                takes = " or ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"{name} is {given!r}; it takes None, {takes}")
        if isinstance(alpha, BottomUpAlpha) and not _has_alphas(model.blocks):
            raise TypeError("alpha is a BottomUpAlpha; it takes a model with a FusedACNStack")
        if depth is not None and not hasattr(model, "truncate"):
            raise TypeError(
                f"model is a {type(model).__name__}; a DepthSchedule takes one with truncate()"
            )
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
        self._found_in: tuple = ()
        # Where recorded steps read it, by holder and shape. What was recorded goes on reading.
        self._places: dict[tuple, _Place] = {}

    @property
    def state(self) -> tuple:
        """What a step depends on beside its data and the numbers in tensors."""
        alphas = tuple(
            (held, held.alpha if held.mix is None else held.mix.shape) for held in self._holders
        )
        return self.network, self._frozen, alphas

    def follow(self, progress: float) -> None:
        """To where the schedules are after the share ``progress`` of the training."""
        layers = len(self.model.blocks)
        if self.depth is not None:
            taking_part = self.depth.at(progress, layers)
            if taking_part != len(self.network.blocks):
                self.network = self.model.truncate(taking_part)
        if self.alpha is not None:
            self._set_alpha(progress)
        frozen = 0 if self.freeze is None else self.freeze.at(progress, layers)
        if frozen != self._frozen:
            self._freeze(frozen)

    def finish(self) -> None:
        """At the end of the training: the last alpha, and nothing frozen any more."""
        if self.alpha is not None:
            self._set_alpha(1.0, in_place=False)
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

    def _set_alpha(self, progress: float, in_place: bool = True) -> None:
        of_layers = isinstance(self.alpha, BottomUpAlpha)
        given = (progress, len(self.model.blocks)) if of_layers else (progress,)
        alpha = self.alpha.at(*given)
        self._find_holders(of_layers)
        for held in self._holders:
            held.alpha = alpha[: len(held)] if of_layers else alpha
            if self._recorded and in_place and held.mix is not None:
                held.mix = self._placed(held)

    def _find_holders(self, of_layers: bool) -> None:
        networks = {self.model, self.network}
        # Looking through all modules at every step costs as much as a small layer.
        found_in = tuple((n, n.blocks, len(n.blocks)) for n in networks)
        if found_in == self._found_in:
            return
        self._found_in = found_in
        if of_layers:
            self._holders = [network.blocks for network in networks]
        else:
            self._holders = [held for network in networks for held in holders_of_alpha(network)]

    def _placed(self, held: Chain | FusedACNStack) -> Tensor:
        """alpha of ``held`` in a tensor that is the same one for every number."""
        device = next(self.model.parameters()).device
        key = held, held.mix.shape, device
        if key not in self._places:
            with torch.inference_mode(False):
                place = torch.empty(held.mix.shape, dtype=held.mix.dtype, device=device)
            self._places[key] = _Place(place)
        return self._places[key].with_(held.alpha)


class _Place:
    """A tensor [] or [L] on a device, filled without waiting for it, as a copy from here would."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._numbers: tuple[float | None, ...] = (None,) * max(1, tensor.numel())

    def with_(self, alpha: float | tuple[float, ...]) -> Tensor:
        numbers = alpha if isinstance(alpha, tuple) else (alpha,)
        entries = self.tensor.view(-1)
        for i, (number, before) in enumerate(zip(numbers, self._numbers, strict=True)):
            if number != before:
                entries[i].fill_(number)
        self._numbers = numbers
        return self.tensor


def _has_alphas(blocks: nn.Module) -> bool:
    """Whether layers may have an alpha of their own: those of a converted model share one."""
    return isinstance(blocks, FusedACNStack) and not isinstance(blocks, ConvertedStack)
