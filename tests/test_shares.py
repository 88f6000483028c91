"""add_shares: the sums of what programs left of sums over all rows, in one launch."""

from __future__ import annotations

import pytest
import torch
from layers import TRITON, device_of
from tolerances import assert_close

pytest.importorskip("triton")

from acn_kernels.kernels.launch import share_tile
from acn_kernels.kernels.shares import add_shares, shares_of

pytestmark = pytest.mark.parametrize("backend", [TRITON])


def random_shares(parameters, programs, device):
    shares = shares_of(parameters, programs, torch.device(device))
    for share in shares:
        if share is not None:
            share.normal_()
    return shares


@pytest.mark.parametrize("programs", [0, 1, 3, 130, 2500])
@pytest.mark.parametrize("width", [1, 7, 64, 200])
def test_each_sum_in_its_shape_and_dtype(backend, width, programs):
    device = device_of(backend)
    parameters = [
        torch.empty(width, dtype=torch.bfloat16, device=device),
        None,
        torch.empty(3, width, dtype=torch.float16, device=device),
        torch.empty((), device=device),
    ]
    shares = random_shares(parameters, programs, device)
    assert shares[1] is None
    assert [s.shape for s in shares if s is not None] == [
        (programs, width), (programs, 3, width), (programs,)
    ]  # fmt: skip
    sums = add_shares(shares, parameters, parameters[0])
    assert sums[1].shape == (0,) and sums[1].dtype == torch.float32
    for total, share, parameter in zip(sums, shares, parameters, strict=True):
        if share is not None:
            assert total.dtype == parameter.dtype
            # A sum near zero is a small difference of as many terms.
            assert_close(total, share.double().sum(0), among=max(1, programs) ** 0.5)


def test_nothing_to_sum_launches_nothing(backend):
    x = torch.empty(2, device=device_of(backend))
    shares = shares_of([None, None], 4, x.device)
    assert [total.numel() for total in add_shares(shares, [None, None], x)] == [0, 0]


def test_the_order_is_fixed_and_the_sum_rounded_once(backend):
    """Equal to the bit however often it runs; one rounding of what fp32 holds."""
    device = device_of(backend)
    parameter = torch.empty(40, dtype=torch.float16, device=device)
    shares = random_shares([parameter], share_tile(10**6).rows + 5, device)
    (once,) = add_shares(shares, [parameter], parameter)
    (single,) = add_shares(shares, [parameter.float()], parameter)
    for _ in range(3):
        assert torch.equal(add_shares(shares, [parameter], parameter)[0], once)
    assert torch.equal(single.half(), once)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_column(backend, value):
    parameter = torch.empty(20, device=device_of(backend))
    (share,) = shares = random_shares([parameter], 6, device_of(backend))
    share[4, 7] = value
    (total,) = add_shares(shares, [parameter], parameter)
    torch.testing.assert_close(total[7], torch.tensor(value, device=total.device), equal_nan=True)
    assert total.isfinite().sum() == 19
