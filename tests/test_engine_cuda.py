"""The C++ engine on a GPU = PyTorch's path = a loop over every sub-network, on every way it has."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
from engine_case import (
    DEPTH,
    EXITS,
    certainty,
    check_nan_in_a_bias,
    clear_threshold,
    images_for,
    network_of,
    plain_loop,
)

from acn_kernels import EarlyExit, Engine, _extension
from acn_kernels.inference.criteria import CRITERIA
from acn_kernels.models import create

gpu = pytest.mark.gpu
needs_kernels = pytest.mark.skipif(
    not _extension.has_cuda_kernels(), reason=f"no CUDA kernels: {_extension.state()}"
)

# Large batches layer by layer, the host knowing at once or late; small ones from graphs.
WAYS = [{"graphs": "off", "lag": 0}, {"graphs": "off"}, {"graphs": "off", "lag": 2},
        {"graphs": "steps"}, {"graphs": "whole"}]  # fmt: skip


def named(way: dict) -> str:
    return " ".join(map(str, way.values()))


def on_gpu(kind: str):
    return network_of(kind).cuda()


def run(engine, images, threshold, criterion="entropy", exits=EXITS, **way):
    """(logits, depth, counts, undecided) of the engine, on the way that is asked for; counts is
    None where nobody asks."""
    logits, depth, stops, counts, undecided = engine._native.run(
        images, exits, threshold, criterion, -1, 0, **way
    )
    counts = dict(zip(stops, counts, strict=True)) if way.get("counts", True) else None
    return logits, depth, counts, undecided


def truth_of(network, images):
    network.blocks.backend = "torch"
    by_depth = network.logits_by_depth(images).cpu()
    network.blocks.backend = "auto"
    return by_depth


def check(result, by_depth, criterion, threshold):
    expected, depths = plain_loop(by_depth, criterion, threshold)
    logits, depth, counts, undecided = result
    assert logits.is_cuda and depth.is_cuda and not logits.is_inference()
    assert torch.equal(depth.cpu(), depths)
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert counts == {k: int((depths == k).sum()) for k in (*EXITS, DEPTH)} and undecided == 0


@gpu
@needs_kernels
@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", ["closing mixer", "vit", "class token", "many classes"])
def test_every_way_and_criterion(kind, criterion, way):
    network = on_gpu(kind)
    images = images_for(network, 33).cuda()
    by_depth = truth_of(network, images)
    middle = clear_threshold(certainty(by_depth[EXITS], criterion))
    engine = Engine.from_model(network)
    for threshold in (0.0, middle, math.inf if criterion == "entropy" else 1.0):
        for _ in range(2):  # what a graph holds is good for more than one batch
            check(run(engine, images, threshold, criterion, **way), by_depth, criterion, threshold)


@gpu
@needs_kernels
@pytest.mark.parametrize("batch", [0, 1, 3, 17, 1000])
@pytest.mark.parametrize("kind", ["mixer", "class token"])
def test_batches_of_any_size(kind, batch):
    network = on_gpu(kind)
    images = images_for(network, batch).cuda()
    by_depth = truth_of(network, images)
    threshold = clear_threshold(certainty(by_depth[EXITS], "entropy"))
    expected, depths = plain_loop(by_depth, "entropy", threshold)
    early = EarlyExit(network, EXITS, threshold)
    for _ in range(3):  # as it comes, captured, and from what was captured
        result = early(images)
        assert early._live is not None
        assert torch.equal(result.depth.cpu(), depths)
        torch.testing.assert_close(result.logits.cpu(), expected, rtol=1e-4, atol=1e-4)
    network.blocks.backend = "torch"
    assert torch.equal(EarlyExit(network, EXITS, threshold)(images).depth.cpu(), depths)


@gpu
@needs_kernels
@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("kind", ["mixer", "vit", "many classes"])
def test_bf16(kind, way):
    network = network_of(kind).to(torch.bfloat16)
    images = images_for(network, 6).bfloat16()
    truth = copy.deepcopy(network).double().logits_by_depth(images.double())
    engine = Engine.from_model(network.cuda())
    for threshold, depth in ((0.0, DEPTH), (math.inf, 1)):
        logits, depths, _, _ = run(engine, images.cuda(), threshold, **way)
        assert logits.dtype == torch.bfloat16 and (depths == depth).all()
        error = (logits.cpu().double() - truth[depth]).abs().max()
        assert error < 0.06 * truth[depth].abs().max()


@gpu
@needs_kernels
@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", ["closing mixer", "many classes"])
def test_nan_never_leaves_early(kind, criterion, way):
    network = on_gpu(kind)
    images = images_for(network, 3).cuda()
    images[1] = torch.nan
    threshold = 100.0 if criterion == "entropy" else 0.0
    logits, depth, counts, undecided = run(
        Engine.from_model(network), images, threshold, criterion, **way
    )
    assert depth.tolist() == [1, DEPTH, 1] and undecided == 1
    assert counts == {1: 2, 2: 0, 3: 0, DEPTH: 1}
    assert logits[1].isnan().all() and not logits[[0, 2]].isnan().any()


@gpu
@needs_kernels
@pytest.mark.parametrize("bias", ["fc1", "fc2"])
@pytest.mark.parametrize("kind", ["mixer", "closing mixer"])
def test_nan_in_the_bias_of_a_token_reaches_all_logits(kind, bias):
    check_nan_in_a_bias(on_gpu(kind), bias)


SYNCHRONISING = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize",
                 "cudaMemcpy", "cudaStreamWaitValue", "cuStreamSynchronize", "cuEventSynchronize",
                 "cuCtxSynchronize")  # fmt: skip


def check_no_host_waits(early, *inputs, **named):
    """Checks that a batch runs from one graph, and that no host waits inside."""
    for _ in range(3):
        early(*inputs, **named)
    obstacle = early._live.engine._native.graphs[2]
    if obstacle:
        pytest.skip(f"no whole graph here: {obstacle}")
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with (
            torch.profiler.profile(activities=activities) as profile,
            torch.profiler.record_function("the batch"),
        ):
            early(*inputs, **named)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    events = profile.events()
    inside = next(event for event in events if event.name == "the batch").time_range
    waits = [
        event.name
        for event in events
        if event.name in SYNCHRONISING and inside.start <= event.time_range.start <= inside.end
    ]
    assert not waits
    assert any("cudaGraphLaunch" in event.name for event in events)


@gpu
@needs_kernels
@pytest.mark.parametrize("batch", [1, 16])
def test_no_host_waits_inside_a_small_batch(batch):
    network = on_gpu("vit")
    check_no_host_waits(EarlyExit(network, EXITS, 1.5), images_for(network, batch).cuda())


@gpu
@needs_kernels
def test_what_has_left_costs_nothing():
    network = create("acn_vit_digits", depth=24).eval().cuda()
    images = images_for(network, 4).cuda()
    engine = Engine.from_model(network)

    def milliseconds(threshold):
        exits = list(range(1, 24))
        times = []
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run(engine, images, threshold, exits=exits, graphs="whole", counts=False)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return sorted(times[2:])[5]

    never, always = milliseconds(0.0), milliseconds(math.inf)
    assert always < never / 3


@gpu
@needs_kernels
def test_captures_are_kept_and_the_oldest_go():
    network = on_gpu("mixer")
    more = images_for(network, 6).cuda()
    images = more[:5]
    engine = Engine.from_model(network)

    def captured() -> tuple[int, int]:
        return engine._native.graphs[:2]

    assert captured() == (0, 0)
    for expected in ((0, 0), (1, 1), (1, 1), (1, 1)):
        run(engine, images, 1.0)
        assert captured() == expected
    run(engine, more, 1.0)  # of the same bucket
    assert captured() == (1, 1)
    for i in range(12):  # no kind takes another's place soon after the last capture
        for _ in range(2):
            run(engine, images, 1.1 + i / 100)
    assert captured() == (8, 8)
    for _ in range(64):
        run(engine, images, 1.1 + 11 / 100)
    assert captured() == (9, 8)
    run(engine, images, 1.0)  # the one that went
    assert captured() == (9, 8)


@gpu
@needs_kernels
def test_changes_of_weights_in_place_count():
    network = on_gpu("class token")
    images = images_for(network, 4).cuda()
    engine = Engine.from_model(network)
    for way in WAYS:
        before = run(engine, images, 0.0, **way)[0]
        with torch.no_grad():
            network.head.bias.add_(1)
        after = run(engine, images, 0.0, **way)[0]
        torch.testing.assert_close(after, before + 1, rtol=1e-5, atol=1e-5)


@gpu
@needs_kernels
def test_threads_share_an_engine():
    network = on_gpu("class token")
    engine = Engine.from_model(network)
    batches = [images_for(network, n).cuda() for n in (1, 9, 200)]
    expected = [run(engine, images, 1.5, graphs="off") for images in batches]
    torch.cuda.synchronize()
    wrong = []

    def work(start):
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(30):
                which = (start + i) % 3
                logits, depth, counts, _ = run(engine, batches[which], 1.5)
                same = torch.equal(depth, expected[which][1]) and counts == expected[which][2]
                if not same or not torch.allclose(logits, expected[which][0], atol=1e-4):
                    wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@gpu
@needs_kernels
def test_memory_does_not_grow():
    network = on_gpu("mixer")
    early = EarlyExit(network, EXITS, 1.5)
    batches = [images_for(network, n).cuda() for n in (1, 5, 64, 100)]

    def call(times):
        for i in range(times):
            early(batches[i % 4])
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    before = call(40)
    assert call(400) == before


@gpu
@needs_kernels
def test_a_saved_model_is_the_live_one(tmp_path):
    network = on_gpu("vit")
    images = images_for(network, 7).cuda()
    network.save_pretrained(tmp_path)
    live, saved = Engine.from_model(network), Engine.from_folder(tmp_path, device="cuda")
    assert saved.device == live.device == images.device
    assert torch.equal(saved(images, EXITS, 1.5).logits, live(images, EXITS, 1.5).logits)
    with pytest.raises(ValueError, match=r"images is Float on cpu; it takes Float on cuda"):
        live(images.cpu())
    with pytest.raises(RuntimeError, match="a batch of 65 takes no graphs; they hold up to 64"):
        run(live, images_for(network, 65).cuda(), 1.5, graphs="whole")
    with pytest.raises(ValueError, match="compiled segments run on cpu"):
        Engine.from_folder(tmp_path, compiled=True, device="cuda")


def test_a_device_that_is_not_built_in_is_refused_in_words(tmp_path):
    network_of("vit").save_pretrained(tmp_path)
    device = "meta" if _extension.has_cuda_kernels() else "cuda"
    with pytest.raises(ValueError, match=f"device is {device}; this build of the engine takes cpu"):
        Engine.from_folder(tmp_path, device=device)
