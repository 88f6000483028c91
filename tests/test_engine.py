"""The C++ engine: EarlyExit on it = PyTorch's path = a loop over every sub-network."""

from __future__ import annotations

import copy
import math
import mmap
import pickle
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from acn_kernels import EarlyExit, Engine, _extension, truncate
from acn_kernels.inference import early_exit
from acn_kernels.inference.criteria import CRITERIA
from acn_kernels.inference.engine_model import obstacle_to_engine_of
from acn_kernels.models import Mixer, create

if _extension.module() is None:
    pytest.skip(f"the compiled extension is {_extension.state()}", allow_module_level=True)

EXITS = [1, 2, 3]
DEPTH = 4
KINDS = {
    "mixer": ("acn_mixer_digits", {}),
    "closing mixer": ("acn_mixer_digits", {"closing": True}),
    "vit": ("acn_vit_digits", {}),
    "class token": ("acn_vit_digits", {"pool": "first"}),
    "odd tokens": ("acn_mixer_digits", {"image_size": 6}),
    "odd tokens of a vit": ("acn_vit_digits", {"image_size": 10}),
    "residual mixer": ("acn_mixer_digits", {"wiring": "residual"}),
    "residual closing mixer": ("acn_mixer_digits", {"closing": True, "wiring": "residual"}),
    "residual class token": ("acn_vit_digits", {"pool": "first", "wiring": "residual"}),
    "mixer between": ("acn_mixer_digits", {"alpha": 0.3}),
    "class token between": ("acn_vit_digits", {"pool": "first", "alpha": 0.6}),
    "direct gradient": ("acn_vit_digits", {"wiring": "dg_only"}),
}


def network_of(kind: str):
    """Weights large enough that the samples differ in how sure the head is of them."""
    name, changes = KINDS[kind]
    fields = {field: value for field, value in changes.items() if field != "alpha"}
    network = create(name, depth=DEPTH, **fields)
    network.blocks.alpha = changes.get("alpha", network.blocks.alpha)
    with torch.no_grad():
        for parameter in network.blocks.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    nn.init.normal_(network.head.weight, std=0.5)
    return network.eval()


def images_for(network, batch: int) -> torch.Tensor:
    size = network.config.image_size
    return torch.randn(batch, network.config.channels, size, size)


def certainty(logits, criterion):
    p = logits.double().softmax(-1)
    if criterion == "entropy":
        return -(p * p.log()).sum(-1)
    first, second = p.sort(-1, descending=True).values[..., :2].unbind(-1)
    return first - second if criterion == "margin" else first


def clear_threshold(values) -> float:
    """Of certainties [exits, B]: above some and below others of the first exit, so that samples
    leave at different depths, and in the widest gap there: rounding decides no exit."""
    first, quarter = values[0].sort().values, values.shape[1] // 4
    if quarter == 0:
        return 0.5
    low, high = first[quarter - 1], first[-quarter]
    inside = values.flatten().sort().values
    inside = inside[(inside >= low) & (inside <= high)]
    widest = inside.diff().argmax()
    return inside[widest : widest + 2].mean().item()


def plain_loop(by_depth, criterion, threshold):
    """Sample by sample, from the logits of every depth."""
    depths = []
    for i in range(by_depth.shape[1]):
        for k in (*EXITS, DEPTH):
            value = certainty(by_depth[k, i], criterion)
            if k == DEPTH or (value < threshold if criterion == "entropy" else value > threshold):
                depths.append(k)
                break
    depths = torch.tensor(depths, dtype=torch.long)
    return by_depth[depths, torch.arange(len(depths))], depths


@pytest.fixture
def engine_alone(monkeypatch):
    """EarlyExit has no other path than the engine."""

    def refuse(*_):
        raise AssertionError("the PyTorch path was taken")

    monkeypatch.setattr(EarlyExit, "_by_segments", refuse)


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


def check_nan_in_a_bias(network, bias: str) -> None:
    images = images_for(network, 3).to(network.head.weight)
    with torch.no_grad():
        getattr(network.blocks[1].token_mlp, bias).bias[2] = torch.nan
    engine = Engine.from_model(network)
    assert not engine(images, depth=1).logits.isnan().any()
    assert engine(images, depth=2).logits.isnan().all()


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


def test_changes_of_the_model_are_seen():
    network = network_of("mixer")
    images = images_for(network, 4)
    early = EarlyExit(network, [], 0.0)

    def check(on_the_engine=True):
        with torch.no_grad():
            torch.testing.assert_close(early(images).logits, network(images), rtol=1e-4, atol=1e-4)
        assert (early._live is not None) == on_the_engine

    check()
    first = early._live
    with torch.no_grad():
        network.head.bias.add_(1)
    check()
    assert early._live is first  # the tensors are shared
    network.head.weight = nn.Parameter(torch.randn_like(network.head.weight))
    check()
    assert early._live is not first
    network.blocks[1].norm2 = nn.LayerNorm(64, eps=1e-3)
    check(on_the_engine=False)
    network.blocks[1].norm2 = nn.LayerNorm(64)
    check()
    network.blocks.alpha = 0.5
    check()
    network.blocks.alpha = [0.5] * (DEPTH - 1) + [1.0]
    check(on_the_engine=False)
    network.blocks.alpha = 1.0
    calls = []
    hook = network.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    check(on_the_engine=False)
    assert calls
    hook.remove()
    check()
    network.blocks.append(create("acn_mixer_digits", depth=1).blocks[0])
    check(on_the_engine=False)


def _step(optimizer, **options):
    def change(network):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer(network.parameters(), lr=0.01, **options).step()

    return change


@torch.no_grad()
def _copy(network):
    network.blocks[1].channel_mlp.fc1.weight[5].copy_(torch.randn(64))


def _load(network):
    network.load_state_dict(network_of("mixer").state_dict())


def _past_the_version(network):
    for parameter in network.parameters():
        parameter.data.mul_(1.1)


CHANGES = {
    "SGD": _step(torch.optim.SGD),
    "Adam, one by one": _step(torch.optim.Adam, foreach=False),
    "Adam, foreach": _step(torch.optim.Adam, foreach=True),
    "AdamW, fused": _step(torch.optim.AdamW, fused=True),
    "copy_ of a row": _copy,
    "load_state_dict": _load,
    ".data": _past_the_version,
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_in_place_are_not_remembered(change, engine_alone):
    """Packed copies of weights are made anew: the engine computes what the model does now."""
    network = network_of("mixer")
    images = images_for(network, 4)
    engine, early = Engine.from_model(network), EarlyExit(network, [], 0.0)
    before = engine(images).logits
    assert torch.equal(early(images).logits, before)
    for _ in range(2):
        CHANGES[change](network)
        with torch.no_grad():
            expected = network(images)
        after = engine(images).logits
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(early(images).logits, after)
        assert (after - before).abs().max() > 1e-2
        before = after


def test_a_model_made_in_inference_mode(engine_alone):
    """Its tensors count no changes."""
    with torch.inference_mode():
        network = network_of("mixer")
        images = images_for(network, 3)
        early = EarlyExit(network, [], 0.0)
        for _ in range(2):
            torch.testing.assert_close(early(images).logits, network(images), rtol=1e-4, atol=1e-4)
            network.blocks[0].channel_mlp.fc1.weight[3].fill_(1.0)


def test_what_the_engine_does_not_run():
    for changes in ({"wiring": "hybrid"}, {"wiring": "feedforward"}):
        network = create("acn_mixer_digits", depth=2, **changes)
        assert obstacle_to_engine_of(network)
        with pytest.raises(ValueError, match="does not run this model"):
            Engine.from_model(network)
    network = network_of("vit")
    network.blocks.granularity = "sublayer"
    assert "blocks as layers" in obstacle_to_engine_of(network)
    network = network_of("vit")
    network.positions.add_(1)
    assert "positions" in obstacle_to_engine_of(network)
    assert obstacle_to_engine_of(network_of("mixer").double())
    network = network_of("mixer")
    network.head.half()
    assert obstacle_to_engine_of(network)
    network = network_of("mixer")
    network.blocks.norm = None
    assert obstacle_to_engine_of(network)


def test_paths_are_chosen_as_elsewhere(monkeypatch):
    network = network_of("mixer")
    images = images_for(network, 2)
    for backend, used in (("auto", True), ("native", True), ("torch", False)):
        network.blocks.backend = backend
        early = EarlyExit(network, EXITS, 0.0)
        early(images)
        assert (early._live is not None) == used
    network.blocks.backend = "auto"
    with torch.autocast("cpu", torch.bfloat16):
        early = EarlyExit(network, EXITS, 0.0)
        early(images)
        assert early._live is None
    monkeypatch.setattr(_extension, "module", lambda: None)
    early = EarlyExit(network, EXITS, 0.0)
    early(images)
    assert early._live is None
    with pytest.raises(RuntimeError, match="extension"):
        Engine.from_model(network)


def test_copies_make_engines_of_their_own(engine_alone):
    network = network_of("mixer")
    images = images_for(network, 3)
    early = EarlyExit(network, EXITS, 0.0)
    expected = early(images)
    for twin in (copy.deepcopy(early), pickle.loads(pickle.dumps(early))):
        assert twin._live is None
        assert torch.equal(twin(images).logits, expected.logits)


def test_wrong_images_are_refused(engine_alone):
    early = EarlyExit(network_of("mixer"), EXITS, 0.0)
    for shape in ((2, 1, 8, 9), (2, 3, 8, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match="images has shape"):
            early(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": [0]}, "exits holds 0"),
        ({"exits": [DEPTH]}, "exits holds 4"),
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
