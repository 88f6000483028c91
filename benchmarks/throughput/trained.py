"""Accuracy against time: early exit of trained models, at every batch size, from the boldest
threshold to none, beside the fastest form in which their full depth could be deployed.

``python -m benchmarks.throughput.trained --model acn=FOLDER --model residual=FOLDER --data DIR
--out DIR``; the folders are those that ``acn-kernels train`` or ``save_pretrained`` wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

import acn_kernels as acn
from acn_kernels.inference import exit_threshold, probe_logits
from acn_kernels.models import ImageClassifier, Model
from acn_kernels.training.data import load_images
from acn_kernels.validation import check_device, check_labels, check_size
from benchmarks.arguments import make_folder
from benchmarks.throughput.case import FASTEST_PEER, Case, Setting, Way, Ways
from benchmarks.throughput.check import problems
from benchmarks.throughput.exits import (
    EXITING,
    FULL,
    Head,
    Stem,
    entropy,
    first_exit,
    threshold_for,
)
from benchmarks.throughput.inference import inference
from benchmarks.throughput.networks import PlainLoop, PlainResidual
from benchmarks.throughput.peers import ahead_of_time, compiled, onnx_runtime
from benchmarks.throughput.runner import run

BATCHES = (1, 16, 256, 1024)
DROP = 0.005  # of accuracy: what "equal" may cost
MEAN_DEPTHS = (1.5, 2, 3, 4, 6, 8, 12)
PAPERS_THRESHOLD = 0.7  # nats, Table 7
_IMAGES = 128  # timed at the least, however small the batch
_AIM = 1 / 3
_LOOPS = {"acn": PlainLoop, "residual": PlainResidual}


@dataclass(frozen=True)
class Trained:
    """A trained model and the test images: thresholds are chosen on the first half of them,
    accuracies and times are those of the second."""

    name: str
    folder: Path
    data: str
    device: str

    @cached_property
    def model(self) -> ImageClassifier:
        return Model.from_pretrained(self.folder).eval()

    def check(self) -> None:
        """Loads what every case of it takes; ValueError or OSError where that cannot be."""
        if not isinstance(self.model, ImageClassifier):
            raise ValueError(f"{self.folder} holds a {self.model.family}, no image classifier")
        wiring = self.model.config.wiring
        if wiring not in _LOOPS:
            raise ValueError(f"{self.folder} is wired {wiring}; it takes {' or '.join(_LOOPS)}")
        if wiring == "residual" and getattr(self.model.config, "closing", False):
            raise ValueError(f"{self.folder} is residual and closing; it takes one or the other")
        check_labels(self.images_and_labels[1], self.model.config.classes)

    @cached_property
    def images_and_labels(self) -> tuple[Tensor, Tensor]:
        config = self.model.config
        test = load_images(self.data, config.image_size, config.channels).test
        return test[torch.arange(len(test))]

    @cached_property
    def logits_and_labels(self) -> tuple[Tensor, Tensor]:
        """[L+1, N, classes] of all sub-networks, [N]."""
        images, labels = (t.split(256) for t in self.images_and_labels)
        model = self.model.to(self.device)
        logits, labels = probe_logits(
            model, ((x.to(self.device), y) for x, y in zip(images, labels, strict=True))
        )
        return logits.cpu(), labels.cpu()

    def halves(self) -> tuple[slice, slice]:
        middle = len(self.images_and_labels[1]) // 2
        return slice(None, middle), slice(middle, None)

    def network(self) -> nn.Module:
        """The same function in plain PyTorch, for other people's compilers."""
        loop = _LOOPS[self.model.config.wiring](self.model.blocks, self.model.blocks.norm)
        return nn.Sequential(Stem(self.model), loop, Head(self.model)).eval()


@dataclass(frozen=True)
class Point:
    """A threshold, and what it does to the samples of the second half."""

    threshold: float
    mean_depth: float
    accuracy: float

    def __str__(self) -> str:
        return (
            f"{EXITING} below {self.threshold:.3g}: {100 * self.accuracy:.1f} %, "
            f"{self.mean_depth:.1f} layers"
        )


def points(trained: Trained) -> tuple[Point, list[Point]]:
    """The threshold that costs half a point at most on the first half, and those of the curve,
    the paper's first."""
    logits, labels = trained.logits_and_labels
    known, judged = trained.halves()
    exits = range(1, len(logits) - 1)
    certainty = entropy(logits)

    def point(threshold: float) -> Point:
        depth = first_exit(certainty[:, judged], exits, threshold)
        chosen = logits[:, judged][depth, torch.arange(len(depth))].argmax(-1)
        right = (chosen == labels[judged]).double().mean().item()
        return Point(threshold, depth.double().mean().item(), right)

    equal = point(exit_threshold(logits[:, known], labels[known], exits, DROP))
    depths = [depth for depth in MEAN_DEPTHS if depth < len(logits) - 1]
    thresholds = [threshold_for(certainty[:, known], exits, mean_depth) for mean_depth in depths]
    return equal, [point(threshold) for threshold in (PAPERS_THRESHOLD, *thresholds)]


def curve(trained: Trained, batch: int) -> Callable[[Setting], Ways]:
    """All of it at one batch size: ``_IMAGES`` images, in whole batches of ``batch``: what is timed
    at full depth is one batch, so many times."""

    @torch.no_grad()
    def build(setting: Setting) -> Ways:
        equal, others = points(trained)
        model = trained.model.to(**setting.place)
        _, judged = trained.halves()
        images = trained.images_and_labels[0][judged]
        wanted = -(-setting.size(_IMAGES, 2) // batch)
        images = images[: max(1, min(wanted, len(images) // batch)) * batch].to(**setting.place)
        batches = images.split(batch)
        layers, exits = len(model.blocks), range(1, len(model.blocks))
        logits, labels = trained.logits_and_labels
        full = (logits[-1, judged].argmax(-1) == labels[judged]).double().mean().item()
        timed = first_exit(entropy(logits[:, judged]), exits, equal.threshold)[: len(images)]
        ways = Ways(
            f"{trained.name}, trained, {layers} layers, {len(images)} images in batches of "
            f"{batch}, exits after every layer, forward",
            facts={
                "accuracy at full depth": full,
                "mean depth of the timed images at equal accuracy": timed.double().mean().item(),
            },
        )

        def repeated(call: Way) -> Way:
            """What all batches take at full depth, which is the same whatever is in them."""
            return lambda: [call() for _ in batches][-1]

        network, one = trained.network(), batches[0]
        ways.add(FULL, repeated(inference(network, one)))
        ways.add(f"{FULL}, compiled", repeated(inference(compiled(network, setting), one)))
        ways.add(f"{FULL}, AOTInductor", repeated(ahead_of_time(network, one, setting)))
        ways.add(f"{FULL}, ONNX Runtime", repeated(onnx_runtime(network, one, setting)))
        whole = acn.EarlyExit(model, [], 0.0)
        ways.add_ours(f"{EXITING} without exits", repeated(lambda: whole(one).logits))
        ways.quality = dict.fromkeys(ways.entries, full)
        for point in (equal, *others):
            early = acn.EarlyExit(model, exits, point.threshold)
            ways.add_ours(
                str(point),
                lambda early=early: torch.cat([early(part).logits for part in batches]),
                like=None,
                same_work=False,
            )
            ways.quality[str(point)] = point.accuracy
        what = f"chosen to cost {100 * DROP:g} points of {100 * full:.1f} %"
        ways.compare(what, str(equal), FASTEST_PEER, _AIM)
        ways.compare("the engine at full depth", f"{EXITING} without exits", FASTEST_PEER, 1.0)
        for point in others:
            ways.compare(
                f"below {point.threshold:.3g}, {100 * point.accuracy:.1f} %",
                str(point),
                FASTEST_PEER,
            )
        return ways

    return build


def cases(models: Iterable[Trained], batches: Iterable[int]) -> list[Case]:
    """One for each model and batch size."""
    return [
        Case(
            f"trained_{_key(trained)}_b{batch}",
            curve(trained, batch),
            rounds=15 if batch < 1000 else 7,
        )
        for trained in models
        for batch in batches
    ]


def _key(trained: Trained) -> str:
    """The name as it stands in those of the files."""
    return trained.name.lower().replace(" ", "_").replace("-", "_")


def _named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it takes NAME=FOLDER")
    return name, Path(folder)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput.trained", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument(
        "--model", type=_named_folder, action="append", required=True, metavar="NAME=FOLDER"
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="as acn-kernels train takes it"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--batch", type=int, action="append", help=f"by default {BATCHES}")
    parser.add_argument("--device", default="cpu")
    return parser


def _loaded(arguments: argparse.Namespace) -> list[Trained]:
    """The models with their images.

    Raises:
        ValueError, OSError, ModuleNotFoundError: an option cannot be followed, or what it names
            is not there.
    """
    check_device(arguments.device)
    for batch in arguments.batch or ():
        check_size("--batch", batch, 1)
    models = [
        Trained(name, folder, arguments.data, arguments.device) for name, folder in arguments.model
    ]
    if len({_key(trained) for trained in models}) < len(models):
        names = ", ".join(trained.name for trained in models)
        raise ValueError(f"--model has the names {names}; their files need different ones")
    for trained in models:
        trained.check()
    make_folder("--out", arguments.out)
    return models


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        models = _loaded(arguments)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"benchmarks.throughput.trained: {error}", file=sys.stderr)
        return 2
    chosen = cases(models, arguments.batch or BATCHES)
    run(chosen, arguments.out, Setting(arguments.device))
    found = problems(chosen, arguments.out)
    for problem in found:
        print(problem, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
