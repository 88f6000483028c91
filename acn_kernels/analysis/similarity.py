"""CKA: how alike what two depths represent is (Kornblith et al., arXiv 1905.00414)."""

from __future__ import annotations

import torch
from torch import Tensor

from acn_kernels.analysis.results import Grid
from acn_kernels.analysis.subnetworks import Batches, features_by_depth
from acn_kernels.models import ImageClassifier

_ROUNDING = 1e-14


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA, in [0, 1], of features x [N, D] and y [N, E] of the same N samples.

    ``|Y'X|_F^2 / (|X'X|_F |Y'Y|_F)`` with centred columns: 1 where one is the other rotated,
    scaled and shifted. NaN where either is constant.

    Raises:
        ValueError: they are not of the same samples.
    """
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; they take [N, D] and [N, E]"
        )
    x, y = _centred(x), _centred(y)
    within = (x.T @ x).norm() * (y.T @ y).norm()
    return (x.T @ y).square().sum() / within


def _centred(features: Tensor) -> Tensor:
    """In fp64; exactly 0 where only the rounding of the mean is left."""
    wide = features.double()
    centred = wide - wide.mean(0)
    centred = torch.where(centred.abs() <= _ROUNDING * wide.abs(), 0.0, centred)
    # Scale cancels; without it, squares of squares leave the range of fp64.
    largest = centred.abs().max() if centred.numel() else 0
    return centred / largest if largest > 0 else centred


def cka_by_depth(model: ImageClassifier, data: Batches) -> Grid:
    """CKA [L+1, L+1] between the pooled sums y_k of all depths, over all samples in ``data``."""
    features, _ = features_by_depth(model, data)
    values = torch.stack([torch.stack([cka(x, y) for y in features]) for x in features])
    return Grid("CKA between depths", "depth", "depth", "similarity", values.cpu())
