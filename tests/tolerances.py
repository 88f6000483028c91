"""The one table of tolerances, and the comparison that uses it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# dtype: (rtol, atol) for one rounding. The truth is computed in float64 from the very numbers the
# tested path was given. rtol is relative to the element of the truth; atol is relative to the
# largest magnitude in the truth, or in ``among`` where the result is a small difference of
# larger terms. Half precision: a unit of roundoff (2^-11, 2^-8) each.
TOLERANCES = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-5, 2e-6),
    torch.float16: (2**-11, 2**-11),
    torch.bfloat16: (2**-8, 2**-8),
}


def assert_close(
    got: Tensor,
    truth: Tensor,
    dtype: torch.dtype | None = None,
    *,
    roundings: float = 1,
    among: float = 0.0,
    name: str = "result",
) -> None:
    """Each element of ``got`` is within the table's tolerance of ``truth`` (float64).

    Args:
        dtype: the precision of the computation, where it is not that of ``got``.
        roundings: how many values rounded to ``dtype`` lie between the inputs and ``got``.
        among: the magnitude of the terms that make up the truth.
    """
    assert got.shape == truth.shape, f"{name}: {tuple(got.shape)}, not {tuple(truth.shape)}"
    if not truth.numel():
        return
    rtol, atol = TOLERANCES[dtype or got.dtype]
    truth = truth.detach().to("cpu", torch.float64)
    got = got.detach().to("cpu", torch.float64)
    bound = roundings * (rtol * truth.abs() + atol * max(float(truth.abs().max()), among))
    error = (got - truth).abs()
    if not (error <= bound).all():
        excess = torch.nan_to_num(error / bound.clamp(min=1e-300), nan=torch.inf)
        worst = int(excess.argmax())
        raise AssertionError(
            f"{name}: {got.flatten()[worst]:.10g} at flat index {worst}, not "
            f"{truth.flatten()[worst]:.10g}: {excess.flatten()[worst]:.3g} times the tolerance"
        )


def assert_all_close(
    got: Iterable[Tensor | None], truth: Iterable[Tensor | None], names: Iterable[str], **kwargs
) -> None:
    """As :func:`assert_close`, item by item; None equals None, and zero where autograd says so."""
    for one, expected, name in zip(got, truth, names, strict=True):
        if one is None or expected is None:
            assert one is None and expected is None, f"{name}: {one}, not {expected}"
        else:
            assert_close(one, expected, name=name, **kwargs)
