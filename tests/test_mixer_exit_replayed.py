"""Early exit of a Mixer on small batches: what is replayed is what would have been computed."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from conftest import DEVICE
from torch import nn

from acn_kernels import dispatch, kept, repeated
from acn_kernels.inference import EarlyExit, mixer_exit
from acn_kernels.models import create

triton_runs, why_not = dispatch.availability()["triton"]
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not triton_runs, reason=why_not)]
DEPTH = 2


@pytest.fixture
def recordings(monkeypatch):
    """The replays of each recording. Without a GPU, in the place of CUDA graphs: a replay runs
    the step on the tensors it was recorded with, and writes to the same results."""
    made = []

    def stand_in(function):
        results = None

        def replay():
            with monkeypatch.context() as patch:
                patch.setattr(kept, "can_be_kept", lambda x: False)  # as in a graph
                made_now = function()
            if results is None:
                return made_now
            for old, new in zip(results, made_now, strict=True):
                old.copy_(new)

        with torch.inference_mode(False):  # a graph writes in any mode
            results = [x.clone() for x in replay()]
        return results, replay

    original = repeated.recorded if DEVICE == "cuda" else stand_in

    def recorded(function):
        results, replay = original(function)
        replays = []
        made.append(replays)
        return results, lambda: replays.append(replay())

    monkeypatch.setattr(repeated, "recorded", recorded)
    monkeypatch.setattr(repeated, "_runs_on_cuda", lambda x: True)
    monkeypatch.setattr(mixer_exit, "_LARGEST", 4)
    if DEVICE == "cpu":
        monkeypatch.setattr(mixer_exit, "_replays", lambda images: True)
    return made


def early_exit(threshold=None, exits=(1,), dtype=torch.float32):
    network = create("acn_mixer_digits", depth=DEPTH, width=16, token_mlp=4, channel_mlp=16)
    nn.init.normal_(network.head.weight, std=0.3)
    network = network.eval().to(DEVICE, dtype)
    if threshold is None:  # some leave at the first exit, some later
        images = images_of(64, dtype)
        network.blocks.backend = "torch"
        with torch.no_grad():
            logits = network(images, depth=1).float()
        threshold = float(torch.distributions.Categorical(logits=logits).entropy().median())
    network.blocks.backend = "triton"
    return EarlyExit(network, exits, threshold)


def images_of(batch, dtype=torch.float32):
    return torch.randn(batch, 1, 8, 8, device=DEVICE, dtype=dtype)


def check(early, batch=1, times=1, dtype=torch.float32):
    """The same as a fresh copy says, which has never recorded anything."""
    for _ in range(times):
        images = images_of(batch, dtype)
        fresh = copy.deepcopy(early)
        for result in zip(early(images), fresh(images), strict=True):
            torch.testing.assert_close(*result)
    return images


def test_what_comes_again_is_replayed(recordings):
    early = early_exit()
    check(early, times=3)
    assert recordings == []
    check(early, times=3)
    assert list(map(len, recordings)) == [3]
    earlier = early(images_of(1))
    copies = [x.clone() for x in earlier]
    early(images_of(1))
    assert all(map(torch.equal, earlier, copies)), "a later call wrote over the result"


def test_sizes_up_to_the_next_power_of_two_share_a_recording(recordings):
    early = early_exit()
    for batch in (3, 4, 3, 4, 3, 4, 1, 1, 1, 1, 0, 0, 0, 0, 0):
        check(early, batch)
    assert list(map(len, recordings)) == [3, 1]
    for _ in range(4):
        check(early, 5)
    assert len(recordings) == 2
    logits, depth = early(images_of(3))
    assert logits.shape == (3, 10) and depth.shape == (3,) and depth.dtype == torch.int64


def test_larger_batches_are_filled_up_to_a_multiple(recordings, monkeypatch):
    monkeypatch.setattr(mixer_exit, "_LARGEST", 12)
    monkeypatch.setattr(mixer_exit, "_STEP", 4)
    early = early_exit()
    for batch in (5, 7, 8, 6, 9, 11, 12, 10):
        check(early, batch)
    assert len(recordings) == 2
    assert early(images_of(11)).depth.shape == (11,)


def test_some_leave_and_some_stay(recordings, monkeypatch):
    monkeypatch.setattr(mixer_exit, "_LARGEST", 16)
    early = early_exit()
    for _ in range(4):
        depth = early(images_of(16)).depth
    assert len(recordings) == 1 and len(depth.unique()) > 1


def in_place(early):
    with torch.no_grad():
        for parameter in early.model.parameters():
            parameter.mul_(1.25)


def by_data(early):
    for parameter in early.model.parameters():
        parameter.data.mul_(1.25)


def loaded(early):
    state = early.model.state_dict()
    early.model.load_state_dict({k: torch.randn_like(v) / 4 for k, v in state.items()})


@pytest.mark.parametrize("change", [in_place, by_data, loaded])
def test_replays_follow_the_weights(recordings, change):
    early = early_exit()
    images = check(early, times=4)
    before = early(images)
    change(early)
    check(early)
    assert list(map(len, recordings)) == [3]
    assert not torch.equal(early(images).logits, before.logits)


def another_weight(early):
    fc1 = early.model.blocks[1].channel_mlp.fc1
    fc1.weight = nn.Parameter(torch.randn_like(fc1.weight) / 4)


def another_head(early):
    early.model.head = copy.deepcopy(early.model.head)
    nn.init.normal_(early.model.head.weight, std=0.5)


def another_stem(early):
    early.model.stem.weight = nn.Parameter(torch.randn_like(early.model.stem.weight))


def another_norm(early):
    early.model.blocks.norm.eps = 0.7


def a_block_replaced(early):
    early.model.blocks[0] = copy.deepcopy(early.model.blocks[1])


def learned_scales(early):
    early.model.blocks.scales = nn.Parameter(torch.rand(DEPTH + 1, device=DEVICE) + 0.5)


def other_exits(early):
    early.exits = ()


def another_threshold(early):
    early.threshold = 10.0


def another_criterion(early):
    early.criterion, early.threshold = "probability", 0.0


def in_training(early):
    early.model.train()


def another_alpha(early):
    early.model.blocks.alpha = 0.5


def another_backend(early):
    early.model.blocks.backend = "torch"


def a_hook_on_the_stem(early):
    early.model.stem.register_forward_hook(lambda module, inputs, output: output * 0.5)


@pytest.mark.parametrize(
    "change",
    [
        another_weight, another_head, another_stem, another_norm, a_block_replaced, learned_scales,
        other_exits, another_threshold, another_criterion, in_training, another_alpha,
        another_backend, a_hook_on_the_stem,
    ],
)  # fmt: skip
def test_what_was_recorded_of_another_model_is_dropped(recordings, change):
    early = early_exit(threshold=math.inf if change is other_exits else 0.0)
    check(early, times=4)
    images = images_of(1)
    before, replays = early(images), len(recordings[0])
    change(early)
    after, expected = early(images), copy.deepcopy(early)(images)
    for result in zip(after, expected, strict=True):
        torch.testing.assert_close(*result, rtol=1e-4, atol=1e-4)
    assert len(recordings[0]) == replays
    assert change is in_training or not torch.equal(before.logits, after.logits)


def test_copies_record_for_themselves(recordings):
    early = early_exit()
    check(early, times=4)
    for twin in (copy.deepcopy(early), pickle.loads(pickle.dumps(early))):
        check(twin, times=5)
    assert len(recordings) == 3
    assert set(early.state_dict()) == {f"model.{name}" for name in early.model.state_dict()}


def test_what_cannot_be_recorded_runs_as_it_is(recordings, monkeypatch):
    def refuses(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(repeated, "recorded", refuses)
    check(early_exit(), times=6)


def test_wrong_images_are_refused_as_ever(recordings):
    early = early_exit()
    check(early, times=4)
    for _ in range(5):
        with pytest.raises(ValueError, match="images has shape"):
            early(torch.randn(1, 1, 9, 8, device=DEVICE))
    check(early)


def test_in_and_out_of_inference_mode(recordings):
    early = early_exit()
    with torch.inference_mode():
        for _ in range(5):
            early(images_of(1))
    assert len(recordings) == 1
    check(early)
    images = images_of(1)
    with torch.inference_mode():
        inside = early(images)
    assert all(map(torch.equal, inside, early(images)))


@pytest.mark.gpu
def test_half_precision_takes_this_way_by_itself(recordings):
    early = early_exit(dtype=torch.bfloat16)
    early.model.blocks.backend = "auto"
    check(early, times=6, dtype=torch.bfloat16)
    assert list(map(len, recordings)) == [3]


@pytest.mark.gpu
def test_memory_does_not_grow():
    early, batches = early_exit(), [images_of(batch) for batch in (1, 3, 16, 64)]
    for _ in range(6):
        for images in batches:
            early(images)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(500):
        for images in batches:
            early(images)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.gpu
def test_inside_the_users_own_graph():
    early = early_exit()
    images = images_of(4)
    for _ in range(6):
        early(images)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = early(images)
    in_place(early)
    graph.replay()
    for pair in zip(result, early(images), strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.gpu
def test_streams_do_not_meet():
    early = early_exit()
    streams = [torch.cuda.Stream() for _ in range(2)]
    given = [images_of(4) for _ in streams]
    torch.cuda.synchronize()
    expected = [copy.deepcopy(early)(images) for images in given]
    torch.cuda.synchronize()
    for _ in range(8):
        results = []
        for stream, images in zip(streams, given, strict=True):
            with torch.cuda.stream(stream):
                results.append(early(images))
        torch.cuda.synchronize()
        for one, other in zip(results, expected, strict=True):
            for pair in zip(one, other, strict=True):
                torch.testing.assert_close(*pair)
