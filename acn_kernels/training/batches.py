"""Which samples make up which batch: a function of seed, epoch and step alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from acn_kernels.training.data import Files, Samples

_MOST_EPOCHS = 100_003


def check_seed(seed: int) -> None:
    """Raises where the orders of its epochs would have no number of their own."""
    most = torch.iinfo(torch.int64).max // _MOST_EPOCHS - 1
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed is {seed!r}; it takes an integer from 0 to {most}")
    if not 0 <= seed <= most:
        raise ValueError(f"seed is {seed}; it takes an integer from 0 to {most}")


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """What the order of an epoch's samples is drawn with; other seeds share none of theirs."""
    return torch.Generator().manual_seed(seed * _MOST_EPOCHS + epoch)


class Share(NamedTuple):
    """What one of several processes takes of every batch."""

    rank: int = 0
    processes: int = 1


class ShuffledBatches:
    """The batches of one epoch from batch ``start`` on, in positions [batch_size / processes].

    A last incomplete batch is left out, so that the mean of the processes' gradients is the
    gradient of the batch, whatever their number.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, epoch: int, start: int, share: Share
    ) -> None:
        order = torch.randperm(samples, generator=generator_of(seed, epoch))
        whole = order[: samples - samples % batch_size].view(-1, batch_size)
        self.batches = whole[start:, share.rank :: share.processes]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


def loader(samples: Samples, batches: object, share: Share) -> DataLoader:
    """(images, labels) of ``samples`` for each of ``batches``, positions [B]; files are read by
    processes of their own."""
    workers = 0
    if isinstance(samples, Files):
        workers = min(8, (os.cpu_count() or 1) // share.processes)
    # Without a generator of its own a loader draws from the global one, once more after a resume.
    return DataLoader(
        samples, batch_size=None, sampler=batches, num_workers=workers, generator=torch.Generator()
    )
