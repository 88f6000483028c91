"""Networks trained as a Training says: each once, kept on disk, resumable epoch by epoch."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from acn_kernels.analysis import GradientHistory
from acn_kernels.files import written_whole
from acn_kernels.inference import probe
from acn_kernels.training.digits import Split
from acn_kernels.training.initialisation import dirac_
from acn_kernels.training.losses import (
    BranchLoss,
    DistillationLoss,
    LayerSkipLoss,
    SharedHeadLoss,
    final_loss,
    rising_weights,
)
from acn_kernels.training.trainer import Trainer
from benchmarks.paper import text_data
from benchmarks.paper.altered import mirrored_and_shifted
from benchmarks.paper.data import Prepared, prepared
from benchmarks.paper.networks import build
from benchmarks.paper.spec import Data, Training
from benchmarks.throughput.environment import sources

_SECONDS_BETWEEN_SAVES = 60
# Weights of branches at a quarter, half and three quarters of the depth (the paper's Table 7).
BRANCH_WEIGHTS = (0.8, 0.6, 0.4)

LOSSES = {
    "final": lambda c: final_loss,
    "shared head": lambda c: SharedHeadLoss(rising_weights(c.depth)),
    "branches": lambda c: BranchLoss(c.width, c.classes, branch_depths(c.depth), BRANCH_WEIGHTS),
    "layerskip": lambda c: LayerSkipLoss(p_max=0.1, e_scale=0.2),
}

# Those that do the same at every step, and so may be replayed on a GPU.
REPEATING = ("final", "shared head", "branches")

FIRST_WEIGHTS = {
    "default": lambda model: None,
    "dirac": lambda model: dirac_(model),
}


def branch_depths(layers: int) -> list[int]:
    return [layers // 4, layers // 2, 3 * layers // 4]


class OutOfTime(Exception):
    """The time of this run is over; what was done is kept for the next one."""


@dataclass
class Trained:
    """A network in eval mode (the layers that took part at the end), its loss (branches hold
    heads), and by epoch the training loss, the seconds of training, the test accuracy (only the
    last, if nobody watched) and, where tracked, the gradient norms [layers] and the test accuracy
    by depth."""

    model: nn.Module
    loss: object
    train_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    gradient_norms: list[Tensor] = field(default_factory=list)
    accuracy_by_depth: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """Where one run happens. deadline: time.time() at which to stop; None is never."""

    work: Path
    seed: int
    data_dir: str | None = None
    device: str = "cpu"
    deadline: float | None = None

    def data(self, data: Data) -> Prepared:
        return prepared(data, self.data_dir, self.device)

    def file(self, folder: str, *of: object) -> Path:
        """Where something is kept that follows from ``of``, the device and this code."""
        key = hashlib.sha256(repr((*of, self.device, sources())).encode()).hexdigest()[:24]
        return self.work / folder / f"{key}.pt"

    @property
    def is_over(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline

    def trained(self, training: Training) -> Trained:
        """The network, from disk where this code has trained it before."""
        training = replace(training, recipe=replace(training.recipe, seed=self.seed))
        file = self.file("networks", training)
        with _alone(file.with_suffix(".lock")):
            return self._trained(training, file)

    def _trained(self, training: Training, file: Path) -> Trained:
        data = self.data(training.data)
        trainer, kept, history = self._start(training, data)
        if file.is_file():
            state = torch.load(file, map_location="cpu")
            trainer.load_state_dict(state["trainer"])
            vars(kept).update(state["kept"])
        if history:
            history.columns = kept.gradient_norms
        saved = time.time()
        while not trainer.done:
            started = time.perf_counter()
            kept.train_loss.append(trainer.train_epoch(data.train))
            kept.seconds.append(time.perf_counter() - started)
            if history:
                history.next_column()
                by_depth = accuracy_by_depth(trainer.network, data.test).tolist()
                kept.accuracy_by_depth.append(by_depth)
                kept.test_accuracy.append(by_depth[-1])
            elif training.watch or trainer.done:
                kept.test_accuracy.append(accuracy(trainer.network, data.test))
            over = self.is_over
            if trainer.done or over or time.time() > saved + _SECONDS_BETWEEN_SAVES:
                _save(file, trainer, kept)
                saved = time.time()
            if over and not trainer.done:
                raise OutOfTime
        if trainer.not_replayed is not None:
            print(f"steps run as they are, not replayed: {trainer.not_replayed}", file=sys.stderr)
        kept.model = trainer.network.eval()
        return kept

    def _start(self, training: Training, data: Prepared):
        torch.manual_seed(self.seed)
        model = build(training, data.classes).to(self.device)
        FIRST_WEIGHTS[training.first](model)
        if training.start is not None:
            known = self.trained(training.start).model
            model.load_state_dict(known.truncate(len(model.blocks)).state_dict())
        loss = LOSSES[training.loss](model.config)
        if training.teacher is not None:
            augment = text_data.word_dropout if training.data.tokens else None
            loss = DistillationLoss(self.trained(training.teacher).model, augment=augment)
        history = GradientHistory(model) if training.track else None
        trainer = Trainer(
            model, training.recipe, len(data.train.labels), loss, training.alpha,
            training.depth, training.freeze, history.note if history else None,
            replay=torch.device(self.device).type == "cuda" and training.loss in REPEATING,
            autocast=torch.bfloat16 if training.half else None,
            length=text_data.lengths if training.data.tokens else None,
            augment=mirrored_and_shifted if training.altered else None,
        )  # fmt: skip
        return trainer, Trained(model, loss), history


def accuracy(model: nn.Module, data: Split) -> float:
    """Of the full network, on all of ``data``, in eval mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        right = [model(images).argmax(1) == labels for images, labels in batches(data)]
    model.train(training)
    return torch.cat(right).double().mean().item()


def batches(data: Split, size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """To test on: by default as many at once as a cache holds, or as keep a GPU longer than its
    host."""
    size = size or (2500 if data.labels.is_cuda else 500)
    return zip(data.images.split(size), data.labels.split(size), strict=True)


def accuracy_by_depth(model: nn.Module, data: Split) -> Tensor:
    """[L+1] on the CPU, through the shared head."""
    return probe(model, batches(data)).cpu()


def _save(file: Path, trainer: Trainer, kept: Trained) -> None:
    names = ("train_loss", "test_accuracy", "gradient_norms", "accuracy_by_depth", "seconds")
    state = {"trainer": trainer.state_dict(), "kept": {n: getattr(kept, n) for n in names}}
    with written_whole(file) as path:
        torch.save(state, path)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Inside, no other process of this work folder is; it waits until that is so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
