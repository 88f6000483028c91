"""EarlyExit by segments: the exit kernel and the compaction, or the model's own norm and head."""

from __future__ import annotations

import math

import pytest
import torch
from layers import BACKENDS, device_of
from test_inference import EXITS, clear_threshold, model
from torch import nn

from acn_kernels.inference import EarlyExit, decision
from acn_kernels.models.vit import ViT


@pytest.fixture(autouse=True)
def without_the_engine(monkeypatch):
    """Which has tests of its own: here "native" are the operations."""
    monkeypatch.setattr(EarlyExit, "_engine", lambda self, inputs: None)


@pytest.fixture
def fused_exits(monkeypatch) -> list:
    """The thresholds of the exits that went through the one operation."""
    seen = []
    whole = decision.exit_head

    def recorded(*args):
        seen.append(args[5])
        return whole(*args)

    monkeypatch.setattr(decision, "exit_head", recorded)
    return seen


def check_early_exit(network, backend, batch=6):
    """Logits and depths against every sub-network run on its own, on PyTorch's kernels."""
    device = device_of(backend)
    network, images = network.to(device), torch.randn(batch, 1, 8, 8, device=device)
    depths = [*EXITS, len(network.blocks)]
    network.blocks.backend = "torch"
    with torch.no_grad():
        logits = torch.stack([network(images, depth=k) for k in depths])
    p = logits.double().softmax(-1)
    certainty = -(p * p.log()).sum(-1)
    levels = certainty[0].sort().values  # rounding decides nothing in their widest gap
    middle = float(levels[levels.diff().argmax() :][:2].mean())
    network.blocks.backend = backend
    for threshold in (0.0, middle, math.inf):
        leaves = certainty < threshold
        leaves[-1] = True
        at = leaves.int().argmax(0)
        result = EarlyExit(network, EXITS, threshold)(images)
        assert result.depth.tolist() == [depths[i] for i in at]
        expected = logits[at, torch.arange(batch)]
        torch.testing.assert_close(result.logits, expected, rtol=1e-4, atol=1e-4)


class TwoLayerHead(ViT):
    def forward_head(self, y, pre_logits=False):
        return super().forward_head(y.relu(), pre_logits)


def vit(wiring: str = "acn", **changes):
    return model(wiring, "acn_vit_digits", **changes)


def of_class(cls, network):
    network.__class__ = cls
    return network


def with_scales(network, include_input=True):
    stack = network.blocks
    values = torch.linspace(0.5, 1.5, len(stack) + include_input)
    network.blocks = type(stack)(
        list(stack), stack.norm, scales=values, include_input=include_input
    ).eval()
    return network


def with_norm(network, norm):
    network.blocks.norm = norm
    return network


def watched(network):
    network.head.register_forward_hook(lambda *_: None)
    return network


class Doubled(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


KNOWN = {
    "mean of the tokens": lambda: vit(),
    "class token": lambda: vit(pool="first"),
    "residual": lambda: vit("residual"),
    "residual, class token": lambda: vit("residual", pool="first"),
    "scales": lambda: with_scales(vit()),
    "scales, no input": lambda: with_scales(vit(), include_input=False),
    "no norm": lambda: with_norm(vit(), None),
}
UNKNOWN = {
    "feedforward": lambda: vit("feedforward"),
    "another head": lambda: of_class(TwoLayerHead, vit()),
    "another norm": lambda: with_norm(vit(), Doubled(vit().config.width)),
    "a hook": lambda: watched(vit()),
    "last token": lambda: last_token(vit()),
}


def last_token(network):
    network.blocks.rows = "last"
    return network


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_models_that_the_operation_knows(fused_exits, backend, name):
    check_early_exit(KNOWN[name](), backend)
    assert fused_exits


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_models_that_keep_the_plain_way(fused_exits, backend, name):
    check_early_exit(UNKNOWN[name](), backend)
    assert not fused_exits


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_host_is_asked_once_an_exit(backend, monkeypatch):
    """For the count alone: every other place stays on the device."""
    device = device_of(backend)
    network, images = vit().to(device), torch.randn(9, 1, 8, 8, device=device)
    network.blocks.backend = backend
    early = EarlyExit(network, EXITS, clear_threshold(network, images))
    early(images)  # what is built once waits for nothing later
    asked = []
    for name in ("__int__", "__bool__", "item", "tolist", "nonzero", "__getitem__"):
        original = getattr(torch.Tensor, name)

        def waiting(self, *args, original=original, name=name, **kwargs):
            keys = [key for key in args if isinstance(key, torch.Tensor)]
            if name != "__getitem__" or any(key.dtype == torch.bool for key in keys):
                asked.append((name, self.dtype))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, waiting)
    early(images)
    monkeypatch.undo()
    assert 1 <= len(asked) <= len(EXITS)
    assert set(asked) == {("__int__", torch.int32)}
