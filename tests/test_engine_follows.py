"""EarlyExit and engine follow the model: what changes in it, and what only PyTorch runs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from engine_case import DEPTH, EXITS, images_for, network_of
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from acn_kernels import EarlyExit, Engine, _extension
from acn_kernels.inference.engine_model import obstacle_to_engine_of
from acn_kernels.models import create

if _extension.module() is None:
    pytest.skip(f"the compiled extension is {_extension.state()}", allow_module_level=True)


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
    # As accelerate puts its own.
    network.blocks[0].forward = lambda x, connection: torch.zeros_like(connection.enter(x, None))
    check(on_the_engine=False)
    del network.blocks[0].forward
    check()
    network.blocks.append(create("acn_mixer_digits", depth=1).blocks[0])
    check(on_the_engine=False)


@pytest.mark.parametrize("kind", ["mixer", "vit"])
def test_a_stem_that_is_channels_last_is_followed(kind):
    network = create(f"acn_{kind}_digits", depth=2, channels=3).eval()
    torch.nn.init.normal_(network.head.weight)
    network = network.to(memory_format=torch.channels_last)
    early, images = EarlyExit(network, [1], 1.2), torch.randn(5, 3, 8, 8)
    early(images)
    assert early._live is not None and not network.stem.weight.is_contiguous()
    with torch.no_grad():
        network.stem.weight.mul_(-3)
        truth = network(images, depth=1), network(images)
    found = early(images)
    for i, depth in enumerate(found.depth.tolist()):
        torch.testing.assert_close(found.logits[i], truth[depth - 1][i], rtol=1e-4, atol=1e-4)


def test_hooks_on_all_modules_see_every_call():
    network, calls = network_of("mixer"), []
    early, images = EarlyExit(network, EXITS, 1.2), images_for(network, 4)
    expected = early(images)
    assert early._live is not None
    hook = register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        found = early(images)
    finally:
        hook.remove()
    assert network.blocks[0].channel_mlp in calls
    assert torch.equal(found.depth, expected.depth)


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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_steps_that_leave_most_of_a_weight_as_it_is(kind, fused, engine_alone):
    """PyTorch does not count what fused optimisers change, and no value that is compared does."""
    network = network_of("mixer")
    images = images_for(network, 4)
    engine = Engine.from_model(network)
    engine(images)
    weight = network.blocks[1].channel_mlp.fc1.weight
    weight.grad = torch.zeros_like(weight)
    weight.grad[3] = 100.0  # of 128 rows; some values of the 5th, 13th, 21st, ... are compared
    kind([weight], lr=0.5, weight_decay=0.0, fused=fused).step()
    with torch.no_grad():
        expected = network(images)
    torch.testing.assert_close(engine(images).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["mixer", "vit", "class token"])
def test_autocast_is_none_of_the_engines_business(kind, dtype, engine_alone):
    network = network_of(kind)
    engine, images = Engine.from_model(network), images_for(network, 5)
    alone = engine(images, EXITS, 1.0)
    with torch.autocast("cpu", dtype):
        assert torch.is_autocast_enabled("cpu")
        within = engine(images, EXITS, 1.0)
        made_within = Engine.from_model(network)(images, EXITS, 1.0)
        assert torch.mm(images[0, 0], images[0, 0].T).dtype == dtype  # still on
    for result in (within, made_within):
        torch.testing.assert_close(result.logits, alone.logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(result.depth, alone.depth)


def test_a_large_head_under_autocast(engine_alone):
    """Its product is PyTorch's own."""
    network = create("acn_mixer_digits", depth=2, classes=20_000).eval()
    nn.init.normal_(network.head.weight, std=0.2)
    engine, images = Engine.from_model(network), torch.randn(6, 1, 8, 8)
    alone = engine(images).logits
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(engine(images).logits, alone, rtol=1e-5, atol=1e-5)


def test_a_model_made_in_inference_mode(engine_alone):
    """Its tensors count no changes."""
    with torch.inference_mode():
        network = network_of("mixer")
        images = images_for(network, 3)
        early = EarlyExit(network, [], 0.0)
        for _ in range(2):
            torch.testing.assert_close(early(images).logits, network(images), rtol=1e-4, atol=1e-4)
            network.blocks[0].channel_mlp.fc1.weight[3].fill_(1.0)


def test_positions_written_over():
    network = network_of("vit")
    images = images_for(network, 3)
    early = EarlyExit(network, [], 0.0)
    early(images)
    network.positions.neg_()
    torch.testing.assert_close(early(images).logits, network(images), rtol=1e-4, atol=1e-4)
    network.positions.neg_()
    torch.testing.assert_close(early(images).logits, network(images), rtol=1e-4, atol=1e-4)


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
