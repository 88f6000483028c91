"""The scales a_i of the long sum: parsed once, handed out term by term."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def parse_scales(scales: str | Sequence[float] | Tensor | None, terms: int) -> Tensor | None:
    """None, an nn.Parameter (learned) or a tensor (fixed) of shape [terms].

    Raises:
        TypeError, ValueError: ``scales`` is of another kind or length.
    """
    if scales is None:
        return None
    if isinstance(scales, str):
        if scales != "learned":
            raise ValueError(
                f"scales is {scales!r}; it takes None, 'learned', a sequence, a tensor or an "
                "nn.Parameter"
            )
        return nn.Parameter(torch.ones(terms))
    if not isinstance(scales, Tensor):
        try:
            scales = torch.tensor([float(scale) for scale in scales])
        except (TypeError, ValueError) as error:
            raise TypeError(f"scales is {scales!r}; it takes a sequence of numbers") from error
    check_scales(scales, terms)
    return scales


def check_scales(scales: Tensor, terms: int) -> None:
    """Raises where ``scales`` does not have one floating-point entry for each of the terms."""
    if not scales.is_floating_point():
        raise TypeError(f"scales has dtype {scales.dtype}; it takes floating-point numbers")
    if scales.shape != (terms,):
        raise ValueError(
            f"scales has shape {tuple(scales.shape)}; the sum takes one for each of {terms} terms"
        )
