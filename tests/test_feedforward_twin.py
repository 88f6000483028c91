"""The feed-forward twin pays for no long connection."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acn_kernels import connection
from acn_kernels.blocks import FeedForwardStack


@pytest.mark.parametrize("recording", [True, False], ids=["training", "inference"])
def test_no_sum_is_built(monkeypatch, recording):
    def summed(*args):
        raise AssertionError("a sum that nobody reads")

    for kind in (connection.RunningSum, connection.MixedStream, connection.LongConnection):
        monkeypatch.setattr(kind, "enter", summed)
    layers = [nn.Linear(8, 8) for _ in range(3)]
    x = torch.randn(2, 8)
    with torch.set_grad_enabled(recording):
        y = FeedForwardStack(layers, backend="torch")(x)
    torch.testing.assert_close(y, nn.Sequential(*layers)(x))
