"""One network in training: its optimiser, its schedules, and a state that resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.models import ImageClassifier
from acn_kernels.repeated import Repeated
from acn_kernels.training.batches import check_seed, generator_of
from acn_kernels.training.checkpoint import random_states, set_random_states
from acn_kernels.training.digits import Split
from acn_kernels.training.losses import Loss, Step, final_loss
from acn_kernels.training.parameter_groups import decayed_apart
from acn_kernels.training.scheduled import ScheduledModel
from acn_kernels.training.schedules import (
    BottomUpAlpha,
    DepthSchedule,
    FreezeSchedule,
    warmup_cosine,
)
from acn_kernels.validation import check_size

__all__ = ["Recipe", "Trainer"]

_SORTED_BATCHES = 50  # among so many in a row samples are put together with those of like length


@dataclass(frozen=True)
class Recipe:
    """AdamW; the learning rate rises over the first ``warmup`` epochs, then follows a cosine.

    max_norm: gradients whose L2 norm over all weights is above it are scaled down to it (Pascanu
    et al., arXiv 1211.5063); None leaves them.

    Raises:
        TypeError, ValueError: naming what is out of range.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 1.0
    seed: int = 0
    max_norm: float | None = None

    def __post_init__(self) -> None:
        check_size("epochs", self.epochs, 0)
        check_size("batch_size", self.batch_size, 1)
        check_seed(self.seed)
        for name in ("lr", "weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes a number from 0")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"max_norm is {self.max_norm}; it takes None or a positive number")

    def steps_per_epoch(self, samples: int) -> int:
        return math.ceil(samples / self.batch_size)


class Trainer:
    """Trains ``model`` by ``recipe`` on ``samples`` samples an epoch.

    Args:
        loss: see :mod:`acn_kernels.training.losses`; one that is an nn.Module is trained too.
        alpha, depth, freeze: what :class:`ScheduledModel` follows, from step to step.
        after_backward: called between the backward pass and the optimiser's step.
        replay: on CUDA, replays steps that repeat (:mod:`acn_kernels.repeated`). ``loss``
            must then not depend on the step; what ``after_backward`` keeps, it must keep in
            tensors that it changes in place.
        autocast: the dtype that the forward pass is autocast to, torch.bfloat16 say; None is not.
        length: of samples [N, ...] the lengths [N]. Those of like length share a batch then, as
            far as chance has put them near each other: less is padding.
        augment: makes of every batch of an epoch the one that is trained on, by torch's own
            random numbers, so that resuming goes on with them; None leaves it. It runs before
            the step, outside of what is replayed.

    Raises:
        TypeError, ValueError: as ScheduledModel does, or there is no sample.
    """

    def __init__(
        self,
        model: ImageClassifier,
        recipe: Recipe,
        samples: int,
        loss: Loss = final_loss,
        alpha: AlphaSchedule | BottomUpAlpha | None = None,
        depth: DepthSchedule | None = None,
        freeze: FreezeSchedule | None = None,
        after_backward: Callable[[], None] | None = None,
        replay: bool = False,
        autocast: torch.dtype | None = None,
        length: Callable[[Tensor], Tensor] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_size("samples", samples, 1)
        self.model, self.recipe, self.loss = model, recipe, loss
        self._scheduled = ScheduledModel(model, alpha, depth, freeze, recorded=replay)
        self.after_backward, self.autocast, self.length = after_backward, autocast, length
        self.augment = augment
        self.steps_per_epoch = recipe.steps_per_epoch(samples)
        self.step = Step(0, recipe.epochs * self.steps_per_epoch)
        parameters = list(model.parameters())
        of_loss = []
        if isinstance(loss, nn.Module):
            of_loss = list(loss.to(parameters[0].device).parameters())
            parameters += of_loss
        self._parameters = parameters
        self._repeated = Repeated(self._update, parameters) if replay else None
        # A recorded step reads its learning rate from a tensor.
        self._rate = torch.tensor(recipe.lr, device=parameters[0].device) if replay else recipe.lr
        groups = decayed_apart(model, recipe.weight_decay, of_loss)
        self.optimizer = torch.optim.AdamW(groups, self._rate, fused=True, capturable=replay)

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return self.step.index // self.steps_per_epoch

    @property
    def done(self) -> bool:
        return self.step.index >= self.step.total

    @property
    def network(self) -> ImageClassifier:
        """What is trained: the model, or that of the layers which take part now."""
        return self._scheduled.network

    @property
    def not_replayed(self) -> str | None:
        """Why steps that were to be replayed run as they are; None where they are, or need not."""
        return None if self._repeated is None else self._repeated.obstacle

    def train_on(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; returns the loss, detached.

        Raises:
            RuntimeError: all steps are done.
        """
        if self.done:
            raise RuntimeError(f"the training is over: all its {self.step.total} steps are done")
        self._follow_schedules(self.step.index / self.step.total)
        self._set_rate()
        if self._repeated is None:
            loss = self._update(images, labels)
        else:
            loss = self._repeated(self._scheduled.state, images, labels)
        self.step = self.step._replace(index=self.step.index + 1)
        if self.done:
            self._finish()
        return loss

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        # Here, as a recorded step need not be told: all modules take longer than its launch.
        self.network.train()
        kind = images.device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            loss = self.loss(self.network, images, labels, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        self._scheduled.gather_gradients()
        if self.after_backward is not None:
            self.after_backward()
        if self.recipe.max_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.max_norm)
        self.optimizer.step()
        return loss.detach()

    def _set_rate(self) -> None:
        warmup = round(self.recipe.warmup * self.steps_per_epoch)
        rate = self.recipe.lr * warmup_cosine(self.step.index, warmup, self.step.total)
        if isinstance(self._rate, Tensor):
            rate = self._rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _finish(self) -> None:
        self.model.train()
        self._scheduled.finish()

    def _follow_schedules(self, progress: float) -> None:
        self._scheduled.follow(progress)

    def train_epoch(self, data: Split) -> float:
        """All samples once, in an order that follows from the seed and the epoch; the mean loss.

        Raises:
            ValueError: they are not as many as the training was planned for.
        """
        if self.recipe.steps_per_epoch(len(data.labels)) != self.steps_per_epoch:
            raise ValueError(
                f"data holds {len(data.labels)} samples, in another number of batches than the "
                f"{self.steps_per_epoch} an epoch that the training was planned for"
            )
        losses = [
            self.train_on(self._augmented(data.images[batch]), data.labels[batch]) * len(batch)
            for batch in self._batches(data)
        ]
        return (torch.stack(losses).sum() / len(data.labels)).item()

    def _augmented(self, images: Tensor) -> Tensor:
        return images if self.augment is None else self.augment(images)

    def _batches(self, data: Split) -> list[Tensor]:
        """The samples of each batch of an epoch, by number."""
        size, device = self.recipe.batch_size, data.labels.device
        generator = generator_of(self.recipe.seed, self.epoch)
        order = torch.randperm(len(data.labels), generator=generator).to(device)
        if self.length is None:
            return list(order.split(size))
        sorted_ones = [
            part[self.length(data.images[part]).argsort()]
            for part in order.split(_SORTED_BATCHES * size)
        ]
        batches = torch.cat(sorted_ones).split(size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def state_dict(self) -> dict:
        """Everything that the rest of the training depends on, beside the data."""
        return {
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict() if isinstance(self.loss, nn.Module) else None,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step.index,
            "random": random_states(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._repeated is not None:  # what was recorded works on the tensors that were there
            self._repeated = Repeated(self._update, self._parameters)
        self.step = self.step._replace(index=state["step"])
        set_random_states(state["random"])
        self._follow_schedules(max(self.step.index - 1, 0) / max(self.step.total, 1))
        if self.done:
            self._finish()
