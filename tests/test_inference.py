"""Probing, choosing a depth and a threshold, leaving early."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from acn_kernels import FusedACNStack
from acn_kernels.inference import (
    EarlyExit,
    calibrate,
    cutoff_depth,
    entropy,
    exit_threshold,
    probe,
)
from acn_kernels.inference.choice import choose
from acn_kernels.inference.probe import accuracy_by_depth
from acn_kernels.models import create

EXITS = (1, 2, 3)


def model(wiring: str = "acn", name: str = "acn_mixer_digits", **changes):
    network = create(name, depth=4, wiring=wiring, **changes)
    nn.init.normal_(network.head.weight, std=0.3)
    return network.eval()


def clear_threshold(network, images) -> float:
    """Amid the entropies at the first exit, in the widest gap: rounding decides no exit."""
    at_first = entropy(network.logits_by_depth(images)[EXITS[0]]).sort().values
    at_first = torch.cat([at_first, at_first[-1:] + 0.01])
    widest = at_first.diff().argmax()
    return at_first[widest : widest + 2].mean().item()


def plain_loop(network, images, exits, threshold):
    """Sample by sample, from the logits of every depth."""
    by_depth = network.logits_by_depth(images)
    logits, depths = [], []
    for i in range(len(images)):
        for k in (*exits, len(network.blocks)):
            p = by_depth[k, i].double().softmax(0)
            sure = -(p * p.log()).sum() < threshold
            if sure or k == len(network.blocks):
                logits.append(by_depth[k, i])
                depths.append(k)
                break
    return torch.stack(logits), torch.tensor(depths)


@pytest.mark.parametrize("wiring", ["acn", "residual", "feedforward"])
@pytest.mark.parametrize("batch", [1, 2, 37])
def test_early_exit_equals_the_plain_loop(wiring, batch):
    network, images = model(wiring), torch.randn(batch, 1, 8, 8)
    middle = clear_threshold(network, images)
    for threshold in (0.0, middle, math.inf):
        expected, depths = plain_loop(network, images, EXITS, threshold)
        result = EarlyExit(network, EXITS, threshold)(images)
        assert torch.equal(result.depth, depths)
        torch.testing.assert_close(result.logits, expected, rtol=1e-4, atol=1e-4)
    assert (depths == 1).all()


def test_early_exit_of_a_class_token_model():
    images = torch.randn(9, 1, 8, 8)
    network = model(name="acn_vit_digits", pool="first")
    middle = clear_threshold(network, images)
    expected, depths = plain_loop(network, images, EXITS, middle)
    result = EarlyExit(network, EXITS, middle)(images)
    assert torch.equal(result.depth, depths) and len(depths.unique()) > 1
    torch.testing.assert_close(result.logits, expected, rtol=1e-4, atol=1e-4)


def test_nan_never_leaves_early():
    images = torch.randn(3, 1, 8, 8)
    images[1] = torch.nan
    result = EarlyExit(model(), EXITS, 100.0)(images)
    assert result.depth.tolist() == [1, 4, 1]
    assert result.logits[1].isnan().all() and not result.logits[[0, 2]].isnan().any()


def test_an_empty_batch():
    result = EarlyExit(model(), EXITS, 1.0)(torch.zeros(0, 1, 8, 8))
    assert result.logits.shape == (0, 10) and result.depth.shape == (0,)


def test_entropy_against_closed_forms():
    uniform = torch.zeros(5)
    assert entropy(uniform).item() == pytest.approx(math.log(5))
    sure = torch.tensor([0.0, -math.inf])
    assert entropy(sure).item() == 0.0
    p = 0.2
    logits = torch.tensor([math.log(p), math.log(1 - p)], dtype=torch.float64)
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert entropy(logits).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("exits", "threshold", "criterion", "message"),
    [
        ([0], 1.0, "entropy", "exits holds 0"),
        ([4], 1.0, "entropy", "exits holds 4"),
        ([5], 1.0, "entropy", "exits is 5"),
        ([1], -1.0, "entropy", "threshold is -1.0"),
        ([1], math.nan, "entropy", "threshold is nan"),
        ([1], 1.0, "patience", "criterion is 'patience'"),
        ([1], 1.5, "margin", "threshold is 1.5; it takes a number from 0 to 1"),
        ([1], -0.5, "probability", "threshold is -0.5"),
    ],
)
def test_bad_arguments(exits, threshold, criterion, message):
    with pytest.raises(ValueError, match=message):
        EarlyExit(model(), exits, threshold, criterion)


def test_exits_that_are_no_list():
    for exits in (1, "12"):
        with pytest.raises(TypeError, match=f"exits is {exits!r}; it takes a list of depths"):
            EarlyExit(model(), exits, 0.5)


class WithoutParts(nn.Module):
    """As a converted model of another library: blocks, but neither embed nor logits_by_depth."""

    def __init__(self):
        super().__init__()
        self.blocks = FusedACNStack([nn.Linear(4, 4) for _ in range(3)])


def test_models_that_do_not_come_in_parts():
    network, batch = WithoutParts(), (torch.randn(2, 4), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"model is a WithoutParts; it takes one with embed"):
        EarlyExit(network, [1], 0.5)
    for find in (probe, calibrate):
        with pytest.raises(TypeError, match="model is a WithoutParts; it takes an image classif"):
            find(network, [batch])


def test_layers_that_read_all_outputs():
    network = create("acn_mixer_digits", depth=3, wiring="denseformer")
    for use in (lambda: EarlyExit(network, [], 0.5), lambda: calibrate(network, [], 0.5)):
        with pytest.raises(TypeError, match="blocks are a DenseFormerStack, whose layers"):
            use()


def test_every_module_is_put_back_into_its_mode():
    network, batches = model().train(), [(torch.randn(4, 1, 8, 8), torch.randint(10, (4,)))]
    network.blocks[1].eval()
    for use in (lambda: probe(network, batches), lambda: network.truncate(3)):
        use()
        assert [m.training for m in (network, network.blocks, *network.blocks)] == [
            True, True, True, False, True, True,
        ]  # fmt: skip


def test_thresholds_of_samples_that_are_never_sure():
    logits, labels = torch.randn(5, 40, 10), torch.randint(10, (40,))
    threshold = exit_threshold(logits, labels, [1, 2], 1.0)
    assert threshold > 0 and exit_threshold(logits, labels, [], 1.0) == 0
    logits[1:3, 7] = torch.nan
    assert exit_threshold(logits, labels, [1, 2], 1.0) > 0.5 * threshold
    logits[1:3] = torch.nan
    assert exit_threshold(logits, labels, [1, 2], 1.0) == 0
    with pytest.raises(ValueError, match=r"accuracy is .*nan"):
        cutoff_depth(torch.tensor([0.5, math.nan]), 0.01)
    for accuracy in (torch.ones(2, 3), torch.ones(0)):
        with pytest.raises(ValueError, match=r"it takes \[L\+1\]"):
            cutoff_depth(accuracy, 0.01)


def test_nan_is_no_answer():
    """argmax takes it for the largest number: class 0 of a network that has diverged."""
    labels = torch.zeros(900, dtype=torch.long)
    logits = torch.randn(5, 900, 10)
    logits[3:, :7] = torch.nan
    right = (logits.argmax(-1) == 0).sum(1)
    right[3:] -= 7
    assert torch.equal(accuracy_by_depth(logits, labels), right.double() / 900)
    for use in (
        lambda: choose(logits, labels, [1, 2], 0.5),
        lambda: exit_threshold(logits, labels, [1, 2], 0.5),
    ):
        with pytest.raises(ValueError, match="logits are NaN for 7 of 900 samples"):
            use()
    logits[4] = torch.randn(900, 10)
    logits[4, :, 0] = 20.0  # the full network is always right, those below it hardly ever
    assert choose(logits, labels, [3], 0.5).depth == 4
    assert exit_threshold(logits, labels, [3], 0.005) < entropy(logits[3]).nanmedian()


@pytest.mark.parametrize("shape", [(40, 1), (1,), (39,)])
def test_labels_of_other_samples(shape):
    logits, labels = torch.randn(5, 40, 10), torch.randint(10, shape)
    for use in (choose, exit_threshold):
        with pytest.raises(ValueError, match=r"40 samples take \(40,\)"):
            use(logits, labels, [1, 2], 0.5)


@pytest.mark.parametrize("exits", [[-1], [0], [4]])
def test_exits_of_a_threshold(exits):
    with pytest.raises(ValueError, match=f"exits (is|holds) {exits[0]}; it takes"):
        exit_threshold(torch.randn(5, 40, 10), torch.randint(10, (40,)), exits, 0.1)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.full((900,), 10), ValueError, "labels go from 10 to 10; the model has 10 classes"),
        (torch.full((900,), -1), ValueError, "labels go from -1 to -1"),
        (torch.zeros(900), TypeError, "labels are torch.float32"),
    ],
    ids=["above", "below", "floats"],
)
def test_labels_that_are_no_classes(labels, error, message):
    network, images = model(), torch.randn(900, 1, 8, 8)
    for chosen in (probe, calibrate):
        with pytest.raises(error, match=message):
            chosen(network, [(images, labels)])
    with pytest.raises(error, match=message):
        exit_threshold(network.logits_by_depth(images), labels, EXITS, 0.01)


def test_no_samples():
    nothing = torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.long)
    with pytest.raises(ValueError, match="data holds no sample"):
        probe(model(), [nothing, nothing])


def test_probe_counts_what_is_right():
    network = model().train()
    batches = [(torch.randn(n, 1, 8, 8), torch.randint(10, (n,))) for n in (5, 3)]
    network.eval()
    right = sum(
        (network.logits_by_depth(images).argmax(-1) == labels).sum(1) for images, labels in batches
    )
    network.train()
    assert torch.equal(probe(network, batches), right.double() / 8)
    assert network.training
    with pytest.raises(ValueError, match="data is empty"):
        probe(network, [])
    with pytest.raises(ValueError, match=r"labels of shape \(1,\) for 5 inputs"):
        probe(network, [(batches[0][0], torch.tensor([3]))])


@pytest.mark.parametrize(
    ("max_drop", "depth"), [(0.0, 3), (0.009, 3), (0.01, 2), (0.5, 1), (1.0, 0)]
)
def test_cutoff_depth(max_drop, depth):
    accuracy = torch.tensor([0.1, 0.5, 0.94, 0.95, 0.95], dtype=torch.float64)
    assert cutoff_depth(accuracy, max_drop) == depth


def test_exit_threshold_keeps_its_promise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (400,), generator=generator)
    noise = torch.randn(5, 400, 4, generator=generator)
    signal = torch.arange(5.0)[:, None, None] * nn.functional.one_hot(labels, 4)
    logits = noise + signal
    full = (logits[-1].argmax(-1) == labels).double().mean()
    previous = 0.0
    for max_drop in (0.0, 0.02, 0.1):
        threshold = exit_threshold(logits, labels, [1, 2, 3], max_drop)
        certainty, depth = entropy(logits), torch.full((400,), 4)
        for k in (3, 2, 1):
            depth[certainty[k] < threshold] = k
        accuracy = (logits[depth, torch.arange(400)].argmax(-1) == labels).double().mean()
        assert accuracy >= full - max_drop - 1e-12
        assert threshold >= previous
        previous = threshold
    assert previous > 0
    assert exit_threshold(logits, labels, [1, 2, 3], 1.0) == pytest.approx(
        entropy(logits)[1:4].max().item()
    )
