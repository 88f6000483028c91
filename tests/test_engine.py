"""The C++ engine: EarlyExit on it = PyTorch's path = a loop over every sub-network."""

from __future__ import annotations

import copy
import math
import mmap
import threading
from pathlib import Path

import pytest
import torch
from engine_case import (
    DEPTH,
    EXITS,
    KINDS,
    certainty,
    check_nan_in_a_bias,
    clear_threshold,
    images_for,
    network_of,
    plain_loop,
)
from torch import nn

from acn_kernels import EarlyExit, Engine, _extension, truncate
from acn_kernels.inference import early_exit
from acn_kernels.inference.criteria import CRITERIA
from acn_kernels.models import Mixer

if _extension.module() is None:
    pytest.skip(f"the compiled extension is {_extension.state()}", allow_module_level=True)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", KINDS)
def test_three_ways_to_leave_early(kind, criterion):
    network = network_of(kind)
    images = images_for(network, 33)
    network.blocks.backend = "torch"
    by_depth = network.logits_by_depth(images)
    middle = clear_threshold(certainty(by_depth[EXITS], criterion))
    for threshold in (0.0, middle, math.inf if criterion == "entropy" else 1.0):
        expected, depths = plain_loop(by_depth, criterion, threshold)
        for backend in ("torch", "auto"):
            network.blocks.backend = backend
            early = EarlyExit(network, EXITS, threshold, criterion)
            result = early(images)
            assert (early._live is not None) == (backend == "auto")
            assert torch.equal(result.depth, depths)
            torch.testing.assert_close(result.logits, expected, rtol=1e-4, atol=1e-4)
    _, depths = plain_loop(by_depth, criterion, middle)
    assert len(depths.unique()) > 1


@pytest.mark.parametrize("batch", [0, 1, 3, 1000])
def test_batches_of_any_size(engine_alone, batch):
    network = network_of("mixer")
    images = images_for(network, batch)
    by_depth = network.logits_by_depth(images)
    threshold = clear_threshold(certainty(by_depth[EXITS], "entropy"))
    expected, depths = plain_loop(by_depth, "entropy", threshold)
    result = EarlyExit(network, EXITS, threshold)(images)
    assert torch.equal(result.depth, depths)
    torch.testing.assert_close(result.logits, expected, rtol=1e-4, atol=1e-4)
    assert not result.logits.is_inference()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["closing mixer", "class token"])
def test_micro_batches_and_threads(kind, threads):
    torch.set_num_threads(threads)  # put back by the fixture one_thread
    network = network_of(kind)
    images = images_for(network, 50)
    engine = Engine.from_model(network)
    by_depth = network.logits_by_depth(images)
    threshold = clear_threshold(certainty(by_depth[EXITS], "margin"))
    expected, depths = plain_loop(by_depth, "margin", threshold)
    for micro_batch in (None, 1, 7, 64):
        result = engine(images, EXITS, threshold, "margin", micro_batch=micro_batch)
        assert torch.equal(result.depth, depths)
        torch.testing.assert_close(result.logits, expected, rtol=1e-4, atol=1e-4)
        assert result.counts == {k: int((depths == k).sum()) for k in (*EXITS, DEPTH)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_depth(kind):
    network = network_of(kind)
    images = images_for(network, 5)
    engine = Engine.from_model(network)
    by_depth = network.logits_by_depth(images)
    for k in range(DEPTH + 1):
        torch.testing.assert_close(
            engine(images, depth=k).logits, by_depth[k], rtol=1e-4, atol=1e-4
        )
        short = Engine.from_model(truncate(network, k))(images)
        torch.testing.assert_close(short.logits, by_depth[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16(engine_alone, kind):
    network = network_of(kind)
    network = network.to(torch.bfloat16)
    images = images_for(network, 6).bfloat16()
    truth = copy.deepcopy(network).double().logits_by_depth(images.double())
    for threshold, depth in ((0.0, DEPTH), (math.inf, 1)):
        result = EarlyExit(network, EXITS, threshold)(images)
        assert result.logits.dtype == torch.bfloat16 and (result.depth == depth).all()
        error = (result.logits.double() - truth[depth]).abs().max()
        assert error < 0.06 * truth[depth].abs().max()


@pytest.mark.parametrize("bias", ["fc1", "fc2"])
@pytest.mark.parametrize("kind", ["mixer", "closing mixer"])
def test_nan_in_the_bias_of_a_token_reaches_all_logits(kind, bias):
    check_nan_in_a_bias(network_of(kind), bias)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nan_never_leaves_early(engine_alone, criterion):
    network = network_of("closing mixer")
    images = images_for(network, 3)
    images[1] = torch.nan
    threshold = 100.0 if criterion == "entropy" else 0.0
    result = EarlyExit(network, EXITS, threshold, criterion)(images)
    assert result.depth.tolist() == [1, DEPTH, 1]
    assert result.logits[1].isnan().all() and not result.logits[[0, 2]].isnan().any()
    again = Engine.from_model(network)(images, EXITS, threshold, criterion)
    assert again.undecided == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_else_is_in_the_batch_does_not_matter(kind):
    """Not at all in an fp32 Mixer; elsewhere but for the order in which attention and ATen's
    products add: the bound that Engine states."""
    network = network_of(kind)
    images = images_for(network, 12)
    engine = Engine.from_model(network)
    together = engine(images).logits
    alone = torch.cat([engine(image[None]).logits for image in images])
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if wide and type(network) is Mixer:
        assert torch.equal(together, alone)
    assert (together - alone).abs().max() <= 1e-5 * together.abs().max()


def test_wrong_images_are_refused(engine_alone):
    early = EarlyExit(network_of("mixer"), EXITS, 0.0)
    for shape in ((2, 1, 8, 9), (2, 3, 8, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match="images has shape"):
            early(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": [0], "threshold": 1.0}, "exits holds 0"),
        ({"exits": [DEPTH], "threshold": 1.0}, "exits holds 4"),
        ({"exits": [1]}, r"threshold is None; it takes a number, as exits is \[1\]"),
        ({"depth": 9}, "depth is 9"),
        ({"depth": -1}, "depth is -1"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"criterion": "luck"}, "criterion is 'luck'"),
        ({"threshold": -1.0}, "threshold is -1.0"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    network = network_of("mixer")
    with pytest.raises(ValueError, match=message):
        Engine.from_model(network)(images_for(network, 1), **changes)
    images = images_for(network, 1)
    for inputs, said in (([[1.0]], "inputs is a list"), (images.to_sparse(), "torch.sparse_coo")):
        with pytest.raises(TypeError, match=said):
            Engine.from_model(network)(inputs)
    for options in ({"exits": [2**70], "threshold": 1.0}, {"depth": 2**70}, {"micro_batch": 2**70}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is {2**70}; it takes"):
            Engine.from_model(network)(images, **options)
    with pytest.raises(TypeError, match="exits is 1; it takes a list of depths"):
        Engine.from_model(network)(images_for(network, 1), 1, 1.0)
    with pytest.raises(ValueError, match="images is Double"):
        Engine.from_model(network)(images_for(network, 1).double())


def test_threads_share_an_engine():
    network = network_of("class token")
    engine = Engine.from_model(network)
    batches = [images_for(network, n) for n in (1, 9, 30)]
    expected = [engine(images, EXITS, 1.5) for images in batches]
    wrong = []

    def work(start):
        for i in range(20):
            which = (start + i) % 3
            result = engine(batches[which], EXITS, 1.5)
            if not torch.equal(result.logits, expected[which].logits):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.slow
def test_ten_thousand_calls_do_not_grow(engine_alone):
    network = network_of("mixer")
    early = EarlyExit(network, EXITS, 1.5)
    images = images_for(network, 3)
    for _ in range(1000):
        early(images)
    before = resident_bytes()
    for _ in range(10_000):
        early(images)
    assert (resident_bytes() - before) / 10_000 < 16  # less than any object takes


def test_truncate():
    network = network_of("mixer")
    images = images_for(network, 2)
    with torch.no_grad():
        assert torch.equal(truncate(network, 2)(images), network(images, depth=2))
    assert len(truncate(network.blocks, 3)) == 3
    with pytest.raises(TypeError, match="model is a Linear"):
        truncate(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="k is 9"):
        truncate(network, 9)


def test_first_exit_is_the_depth_of_early_exit():
    network = network_of("closing mixer")
    images = images_for(network, 20)
    by_depth = network.logits_by_depth(images)
    threshold = clear_threshold(certainty(by_depth[EXITS], "entropy"))
    expected = early_exit.first_exit(certainty(by_depth, "entropy"), EXITS, threshold)
    assert torch.equal(EarlyExit(network, EXITS, threshold)(images).depth, expected)
