"""The data of the experiments, from scikit-learn (smoke) or the data folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from acn_kernels.training import datasets
from acn_kernels.training.digits import Split
from benchmarks.paper import text_data
from benchmarks.paper.spec import Data


class Prepared(NamedTuple):
    """train, test: standardised, or token ids in the place of images. pixels: the test images in
    [0, 1]; ``prepare`` standardises such."""

    train: Split
    test: Split
    classes: int
    pixels: Split | None = None
    prepare: Callable[[Tensor], Tensor] | None = None


@functools.lru_cache(maxsize=4)
def prepared(data: Data, folder: str | None, device: str) -> Prepared:
    """Reads, chooses and standardises what ``data`` says.

    Raises:
        ValueError, FileNotFoundError: the data folder is not named, or lacks the files.
    """
    if data.name == "sst2":
        train, test = text_data.sentences(data, folder)
        return Prepared(_on(device, train), _on(device, test), 2)
    train, test = (_read(data.name, folder, part) for part in datasets.PARTS)
    classes = data.classes or range(int(train.labels.max()) + 1)
    train = datasets.of_classes(train, classes, data.per_class)
    test = datasets.of_classes(test, classes)
    train, test = (
        Split(part.images[:count], part.labels[:count])
        for part, count in ((train, data.train), (test, data.test))
    )
    if data.tokens:
        train, test = (_on(device, text_data.read_as_sentence(part)) for part in (train, test))
        return Prepared(train, test, len(classes))
    mean, deviation = (t.to(device) for t in datasets.channel_statistics(train.images))
    standard = (_on(device, part) for part in datasets.standardised(train, test))
    pixels = Split(test.images.to(device).float() / 255, test.labels.to(device))
    return Prepared(*standard, len(classes), pixels, lambda x: (x - mean) / deviation)


def _on(device: str, part: Split) -> Split:
    return Split(*(t.to(device) for t in part))


@functools.lru_cache(maxsize=8)
def _read(name: str, folder: str | None, part: str) -> Split:
    if name == "digits":
        return _digits(part)
    readers = {
        "cifar10": datasets.cifar10,
        "cifar100": datasets.cifar100,
        "fashion": datasets.fashion_mnist,
    }
    return readers[name](folder, part)


def _digits(part: str) -> Split:
    """scikit-learn's digits as bytes, shuffled once: 1,200 to train on and 597 to test."""
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    order = order[:1200] if part == "train" else order[1200:]
    images = torch.from_numpy(digits.images)[order, None] * (255 / 16)
    return Split(images.round().to(torch.uint8), torch.from_numpy(digits.target)[order].long())
