"""Learning tasks one after the other: Synaptic Intelligence, and what is forgotten."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["SynapticIntelligence", "average_accuracy", "forgetting"]

_DAMPING = 0.1  # xi of the paper: parameters that hardly moved


class SynapticIntelligence:
    """Holds on to parameters by what they contributed to earlier tasks (arXiv 1703.04200).

    ``w += -g (change)`` along the way, g being the gradient of the task's own loss; at the end of
    a task ``Omega += max(w, 0) / ((total change)^2 + 0.1)``. The penalty is
    ``strength * sum Omega (theta - theta*)^2``, theta* being the end of the last task.

    Around every optimiser step: ``loss + si.penalty()``, backward, ``si.before_step()``, step,
    ``si.after_step()``; after a task ``si.end_task()``.

    Between two tasks ``state_dict()`` holds, beside the parameters, all that the next one needs.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], strength: float) -> None:
        if not strength >= 0:
            raise ValueError(f"strength is {strength}; it takes a number of at least 0")
        self.parameters, self.strength = list(parameters), strength
        self.importance = [torch.zeros_like(p) for p in self.parameters]
        self._start_task()

    def _start_task(self) -> None:
        self.anchors = [p.detach().clone() for p in self.parameters]
        self._path = [torch.zeros_like(p) for p in self.parameters]

    def penalty(self) -> Tensor:
        """A scalar with gradients."""
        terms = (
            (importance * (p - anchor).square()).sum()
            for p, anchor, importance in zip(
                self.parameters, self.anchors, self.importance, strict=True
            )
        )
        return self.strength * sum(terms)

    @torch.no_grad()
    def before_step(self) -> None:
        self._before = [p.clone() for p in self.parameters]
        self._gradients = [
            # The penalty's share, known in closed form, is no part of the task's gradient.
            torch.zeros_like(p) if p.grad is None
            else p.grad - 2 * self.strength * importance * (p - anchor)
            for p, anchor, importance in zip(
                self.parameters, self.anchors, self.importance, strict=True
            )
        ]  # fmt: skip

    @torch.no_grad()
    def after_step(self) -> None:
        for path, gradient, p, before in zip(
            self._path, self._gradients, self.parameters, self._before, strict=True
        ):
            path -= gradient * (p - before)

    @torch.no_grad()
    def end_task(self) -> None:
        for importance, path, p, anchor in zip(
            self.importance, self._path, self.parameters, self.anchors, strict=True
        ):
            importance += path.clamp(min=0) / ((p - anchor).square() + _DAMPING)
        self._start_task()

    def state_dict(self) -> dict:
        return {"importance": self.importance}

    def load_state_dict(self, state: dict) -> None:
        """The next task starts from the parameters as they are now."""
        for importance, kept in zip(self.importance, state["importance"], strict=True):
            importance.copy_(kept)
        self._start_task()


def average_accuracy(accuracy: Tensor) -> float:
    """Of accuracy [T, T], row t after training on task t, column j on task j: the mean of the
    last row."""
    return _checked(accuracy)[-1].mean().item()


def forgetting(accuracy: Tensor) -> float:
    """The mean over tasks 1 .. T-1 of the best accuracy ever before the end minus the last one.

    Raises:
        ValueError: there are fewer than two tasks.
    """
    accuracy = _checked(accuracy)
    if len(accuracy) < 2:
        raise ValueError("accuracy is of one task; forgetting takes at least two")
    # Before a task was trained there is nothing of it to forget.
    best = torch.stack([accuracy[j:-1, j].max() for j in range(len(accuracy) - 1)])
    return (best - accuracy[-1, :-1]).mean().item()


def _checked(accuracy: Tensor) -> Tensor:
    if accuracy.dim() != 2 or accuracy.shape[0] != accuracy.shape[1] or not len(accuracy):
        raise ValueError(f"accuracy has shape {tuple(accuracy.shape)}; it takes [tasks, tasks]")
    return accuracy.double()
