"""probe: how good is every sub-network? The paper's Fig. 1, with the shared head."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from acn_kernels.models import ImageClassifier
from acn_kernels.modes import in_eval_mode
from acn_kernels.validation import check_labels


@torch.no_grad()
def probe_logits(
    model: ImageClassifier, data: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """(logits [L+1, N, classes] of all sub-networks, labels [N]) over batches (inputs, labels).

    Runs in eval mode and puts the model back as it was.

    Raises:
        TypeError: the model is no image classifier of :mod:`acn_kernels.models`.
        TypeError, ValueError: ``data`` holds no sample, a batch with more or fewer labels than
            inputs, or a label that is none of the model's classes.
    """
    check_probed(model)
    logits, labels = collected_by_depth(model, data, model.logits_by_depth)
    check_labels(labels, logits.shape[-1])
    return logits, labels


def check_probed(model: ImageClassifier) -> None:
    """Raises TypeError where ``model`` does not tell the logits of all its sub-networks."""
    if not callable(getattr(model, "logits_by_depth", None)):
        raise TypeError(
            f"model is a {type(model).__name__}; it takes an image classifier of acn_kernels.models"
        )


def collected_by_depth(
    model: ImageClassifier,
    data: Iterable[tuple[Tensor, Tensor]],
    of_batch: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """(``of_batch(inputs)`` [L+1, n, ...] of all batches as [L+1, N, ...], labels [N]); in eval
    mode, from which the model is put back, and otherwise as :func:`probe_logits`."""
    batches = []
    with in_eval_mode(model):
        for inputs, labels in data:
            if labels.shape != inputs.shape[:1]:
                raise ValueError(
                    f"data has labels of shape {tuple(labels.shape)} for {len(inputs)} inputs; it "
                    "takes one label for each"
                )
            batches.append((of_batch(inputs), labels))
    if not batches:
        raise ValueError("data is empty; it takes at least one batch (inputs, labels)")
    values, labels = zip(*batches, strict=True)
    return torch.cat(values, dim=1), torch.cat(labels)


def probe(model: ImageClassifier, data: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Accuracy [L+1], in [0, 1], of every sub-network over batches (inputs, labels); raises as
    :func:`probe_logits` does."""
    return accuracy_by_depth(*probe_logits(model, data))


def accuracy_by_depth(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy [L+1] from logits [L+1, N, classes] and labels [N]."""
    return right(logits, labels).double().mean(1)


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """[..., N] bool: where logits [..., N, classes] are largest at the label [N]; never where they
    hold NaN, which argmax takes for the largest."""
    return (logits.argmax(-1) == labels) & ~logits.isnan().any(-1)
