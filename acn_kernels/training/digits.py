"""scikit-learn's handwritten digits: 1,797 real images of 8x8, shipped inside that package."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """images [N, C, H, W], or texts [N, T]; labels [N] int64. The digits are [N, 1, 8, 8] fp32,
    standardised."""

    images: Tensor
    labels: Tensor


class Digits(NamedTuple):
    """Training, calibration and test samples, disjoint."""

    train: Split
    calibration: Split
    test: Split


def load_digits(seed: int = 0, train: int = 1000, calibration: int = 297) -> Digits:
    """The digits, shuffled by ``seed``; what training and calibration leave is for the test.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed; ``pip install acn-kernels[demo]``.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(digits.images).float()[order, None]
    labels = torch.from_numpy(digits.target).long()[order]
    images = (images - images[:train].mean()) / images[:train].std()
    parts = (train, calibration, len(labels) - train - calibration)
    return Digits(*map(Split, images.split(parts), labels.split(parts)))
