"""One seed of the demonstration: train the twins, find where to cut, measure what it saves."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from acn_kernels.inference import EarlyExit, cutoff_depth, exit_threshold, probe_logits
from acn_kernels.inference.probe import accuracy_by_depth
from acn_kernels.models import ImageClassifier, Model, create
from acn_kernels.timing import interleaved_seconds
from acn_kernels.training.digits import Split, load_digits
from acn_kernels.training.fit import fit_side_by_side

PRESET = "acn_mixer_digits"
NETWORKS = ("acn", "residual")
BATCHES = (1, 32, 512)
TIMED_ROUNDS = 15


@dataclass(frozen=True)
class Outcome:
    """What was measured of one network. Accuracies are on the test set, in [0, 1]; cutoff and
    threshold (nats) were chosen on the calibration set; times are milliseconds per batch."""

    model: ImageClassifier
    accuracy: Tensor  # [L+1], by depth
    cutoff: int
    threshold: float
    exit_accuracy: float
    exit_depth: float  # mean over the test set
    train_seconds: float
    milliseconds: dict[int, dict[str, float]]  # batch -> way -> ms


def run_seed(
    seed: int, epochs: int, max_drop: float, device: str, progress: bool = True
) -> dict[str, Outcome]:
    """Trains the twins from one seed on the same batches and measures both."""
    digits = load_digits(seed)
    train, calibration, test = (Split(*(part.to(device) for part in split)) for split in digits)
    models = {}
    for wiring in NETWORKS:
        torch.manual_seed(seed)
        models[wiring] = create(PRESET, wiring=wiring).to(device)
    seconds = fit_side_by_side(models, train, epochs=epochs, seed=seed, progress=progress)
    return {
        wiring: _measure(model.eval(), calibration, test, max_drop, seconds[wiring])
        for wiring, model in models.items()
    }


def _measure(
    model: ImageClassifier, calibration: Split, test: Split, max_drop: float, seconds: float
) -> Outcome:
    logits, labels = probe_logits(model, [calibration])
    exits = range(1, model.config.depth)
    cutoff = cutoff_depth(accuracy_by_depth(logits, labels), max_drop)
    threshold = exit_threshold(logits, labels, exits, max_drop)
    early = EarlyExit(model, exits, threshold)
    left = early(test.images)
    # All three run as early exit does, in the engine or outside: only the layers differ.
    whole, short = (EarlyExit(m, [], 0.0) for m in (model, model.truncate(cutoff)))
    ways = {"full": whole, "truncated": short, "early exit": early}
    return Outcome(
        model=model,
        accuracy=accuracy_by_depth(*probe_logits(model, [test])).cpu(),
        cutoff=cutoff,
        threshold=threshold,
        exit_accuracy=(left.logits.argmax(-1) == test.labels).double().mean().item(),
        exit_depth=left.depth.double().mean().item(),
        train_seconds=seconds,
        milliseconds={batch: _milliseconds(ways, test.images, batch) for batch in BATCHES},
    )


@torch.no_grad()
def _milliseconds(
    ways: dict[str, Callable[[Tensor], object]], images: Tensor, size: int
) -> dict[str, float]:
    """Median times on a batch of ``size`` images, repeating them where there are fewer."""
    batch = images[torch.arange(size, device=images.device) % len(images)]
    bound = {name: functools.partial(way, batch) for name, way in ways.items()}
    seconds = interleaved_seconds(bound, TIMED_ROUNDS, batch.device)
    return {name: 1e3 * statistics.median(samples) for name, samples in seconds.items()}


def reloads_exactly(short: ImageClassifier, folder: str, images: Tensor) -> bool:
    """Saves the cut model into ``folder``, loads it anew and compares every logit bit for bit."""
    short.save_pretrained(folder)
    loaded = Model.from_pretrained(folder).to(images.device).eval()
    with torch.no_grad():
        return torch.equal(loaded(images), short(images))
