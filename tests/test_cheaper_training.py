"""Schedules by hand; and that what does not take part costs and changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.models import create
from acn_kernels.training.digits import Split
from acn_kernels.training.initialisation import dirac_, scaled_
from acn_kernels.training.schedules import BottomUpAlpha, DepthSchedule, FreezeSchedule
from acn_kernels.training.trainer import Recipe, Trainer


def model(**changes):
    network = create("acn_mixer_digits", **{"depth": 4, **changes})
    network.blocks.backend = "torch"  # whose FLOPs the counter sees
    nn.init.normal_(network.head.weight, std=0.3)
    return network


def data(size: int = 16) -> Split:
    return Split(torch.randn(size, 1, 8, 8), torch.randint(10, (size,)))


def test_depths_by_hand():
    grow = DepthSchedule(((0, 0.25), (0.5, 0.6), (0.75, 1.0))).checked()
    assert [grow.at(p, 8) for p in (0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [2, 2, 5, 5, 8, 8]
    assert DepthSchedule(((0, 0.01),)).at(0.3, 8) == 1
    for stages in ((), ((0.1, 1),), ((0, 1), (0.5, 1), (0.4, 1)), ((0, 0),), ((0, 1), (1, 1))):
        with pytest.raises(ValueError, match="stage"):
            DepthSchedule(stages).checked()


def test_frozen_layers_by_hand():
    freeze = FreezeSchedule(0.5, 0.5)
    assert [freeze.at(p, 8) for p in (0, 0.49, 0.5, 0.625, 0.75, 1.0)] == [0, 0, 0, 1, 2, 4]


def changed(network, before) -> list[bool]:
    """For every layer, whether any of its weights moved."""
    return [
        any(not torch.equal(a, b) for a, b in zip(*(m.parameters() for m in pair), strict=True))
        for pair in zip(network.blocks, before.blocks, strict=True)
    ]


def test_decay_leaves_learned_scales_alone():
    network = model(wiring="hybrid")
    trainer = Trainer(network, Recipe(1, batch_size=16, lr=0.1, weight_decay=0.5, warmup=0), 16)
    groups = [(g["weight_decay"], g["params"]) for g in trainer.optimizer.param_groups]
    (decay, rest), (none, scales) = groups
    assert (decay, none) == (0.5, 0.0) and scales == [network.blocks.scales]
    assert len(rest) == len(list(network.parameters())) - 1
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = network.blocks.scales.clone(), network.stem.weight.clone()
    trainer.optimizer.step()
    assert torch.equal(network.blocks.scales, before[0])
    assert not torch.equal(network.stem.weight, before[1])
    plain = Trainer(model(), Recipe(1), 16).optimizer
    assert len(plain.param_groups) == 1


def test_decay_leaves_averages_of_outputs_alone():
    network = model(wiring="denseformer")
    trainer = Trainer(network, Recipe(1, batch_size=16), 16)
    spared = {id(p) for p in trainer.optimizer.param_groups[1]["params"]}
    assert spared == {id(mixer.weight) for mixer in network.blocks.mixers}
    assert model(wiring="densenet").no_weight_decay() == set()


@pytest.mark.parametrize("seed", [-1, 2**62, True, 1.0])
def test_seeds(seed):
    with pytest.raises((TypeError, ValueError), match=f"seed is {seed!r}; it takes an integer fr"):
        Recipe(1, seed=seed)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0; it takes an integer of at least 1"),
        ({"batch_size": -4}, ValueError, "batch_size is -4"),
        ({"epochs": 1.5}, TypeError, "epochs is 1.5"),
        ({"lr": float("nan")}, ValueError, "lr is nan; it takes a number from 0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay is -1.0"),
        ({"max_norm": 0.0}, ValueError, "max_norm is 0.0; it takes None or a positive number"),
    ],
)
def test_recipes(changes, error, message):
    with pytest.raises(error, match=message):
        Recipe(**{"epochs": 1, **changes})


@pytest.mark.parametrize(
    "schedule",
    [BottomUpAlpha(1.0, 1.5), BottomUpAlpha(-0.1, 0.5), FreezeSchedule(0.5, 2.0),
     FreezeSchedule(-1, 0.5), FreezeSchedule(0.5, float("nan"))],
)  # fmt: skip
def test_schedules_out_of_range(schedule):
    kind = "alpha" if isinstance(schedule, BottomUpAlpha) else "freeze"
    with pytest.raises(ValueError, match=f"of the {type(schedule).__name__} is .*0 to 1"):
        Trainer(model(), Recipe(1), 16, **{kind: schedule})


@pytest.mark.parametrize("stages", [((0, 0.5), (float("nan"), 1.0)), ((0, float("nan")),)])
def test_stages_that_are_no_numbers(stages):
    with pytest.raises(ValueError, match="nan"):
        DepthSchedule(stages).checked()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alpha": (0.0, 1.0, 0.5)},
            r"alpha is \(0.0, 1.0, 0.5\); it takes None, AlphaSchedule or BottomUp",
        ),
        ({"alpha": 0.5}, "alpha is 0.5"),
        ({"depth": ((0, 1),)}, r"depth is \(\(0, 1\),\); it takes None, DepthSchedule"),
        ({"freeze": 0.5}, "freeze is 0.5"),
    ],
)
def test_schedules_of_another_kind(changes, message):
    with pytest.raises(TypeError, match=message):
        Trainer(model(), Recipe(1), 16, **changes)


def test_a_model_that_cannot_be_cut_takes_no_depths():
    with pytest.raises(TypeError, match="a Sequential; a DepthSchedule takes one with truncate"):
        Trainer(nn.Sequential(nn.Linear(2, 2)), Recipe(1), 16, depth=DepthSchedule(((0, 1),)))


def test_no_samples_and_no_epochs():
    with pytest.raises(ValueError, match="samples is 0; it takes an integer of at least 1"):
        Trainer(model(), Recipe(1), 0)
    trainer = Trainer(model(), Recipe(0), 16)
    trainer.load_state_dict(trainer.state_dict())
    assert trainer.done and trainer.epoch == 0


def test_more_than_was_planned():
    trainer = Trainer(model(), Recipe(1, batch_size=16), 16)
    with pytest.raises(ValueError, match="data holds 64 samples, in another number of batches"):
        trainer.train_epoch(data(64))
    trainer.train_epoch(data())
    with pytest.raises(RuntimeError, match="the training is over: all its 1 steps are done"):
        trainer.train_epoch(data())


@pytest.mark.parametrize("wiring", ["acn", "residual"])
def test_only_layers_that_take_part_are_trained(wiring):
    network, samples = model(wiring=wiring), data()
    before = copy.deepcopy(network)
    schedule = DepthSchedule(((0, 0.5), (0.5, 1.0)))
    trainer = Trainer(network, Recipe(2, batch_size=16), 16, depth=schedule)
    loss = trainer.train_on(*samples)
    truth = F.cross_entropy(before(samples.images, depth=2), samples.labels)
    torch.testing.assert_close(loss, truth.detach())
    assert changed(network, before) == [True, True, False, False]
    trainer.train_on(*samples)
    assert all(changed(network, before)) and trainer.done


def flops_of_a_step(trainer: Trainer, samples: Split) -> int:
    with FlopCounterMode(display=False) as counter:
        trainer.train_on(*samples)
    return counter.get_total_flops()


def test_frozen_layers_cost_no_backward_pass():
    """A step: one forward pass and, of what learns, a backward pass of two forward passes."""
    samples, flops = data(), {}
    for share in (0.0, 0.5):
        network = model()
        trainer = Trainer(network, Recipe(4, batch_size=16), 16, freeze=FreezeSchedule(0.0, share))
        before = [copy.deepcopy(network)]
        for _ in range(4):
            before.append(copy.deepcopy(network))
            flops[share] = flops_of_a_step(trainer, samples)
        # At three quarters of the training: 4 * share * 3/4 layers, rounded down.
        frozen = int(3 * share)
        assert changed(network, before[-1]) == [False] * frozen + [True] * (4 - frozen)
        assert all(p.requires_grad for p in network.parameters())  # the trainer is done
    tokens, width, config = 16, 64, network.config
    layer = 4 * 16 * tokens * width * (config.token_mlp + config.channel_mlp)
    stem = 2 * 16 * tokens * width * 4
    # The stem, whose input takes no gradient, has half a backward pass.
    assert flops[0.0] - flops[0.5] == 2 * layer + stem


def test_a_class_token_is_frozen_with_what_lies_around_it():
    network = create("acn_vit_digits", depth=2, pool="first")
    trainer = Trainer(network, Recipe(2, batch_size=16), 16, freeze=FreezeSchedule(0.0, 1.0))
    trainer.train_epoch(data())
    before = copy.deepcopy(network)
    trainer._follow_schedules(0.99)
    learns = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learns == {"blocks.norm.weight", "blocks.norm.bias", "head.weight", "head.bias",
                      *(n for n in learns if n.startswith("blocks.1."))}  # fmt: skip
    trainer.train_epoch(data())
    assert torch.equal(network.cls_token, before.cls_token)
    with pytest.raises(TypeError, match="model is a Sequential; a FreezeSchedule takes an image"):
        Trainer(nn.Sequential(), Recipe(1), 16, freeze=FreezeSchedule(0.5, 0.5))


def test_alpha_reaches_the_cut_network_too():
    network = model()
    schedule, depth = AlphaSchedule(0.0, 1.0, 1.0), DepthSchedule(((0, 1.0), (0.5, 0.5)))
    trainer = Trainer(network, Recipe(4, batch_size=16), 16, alpha=schedule, depth=depth)
    seen = []
    for _ in range(4):
        trainer.train_on(*data())
        seen.append((len(trainer.network.blocks), trainer.network.blocks.alpha))
    # After the last step the end of the schedule stands, in both.
    assert seen == [(4, 0.0), (4, 0.25), (2, 0.5), (2, 1.0)]
    assert network.blocks.alpha == 1.0


def test_alpha_from_the_bottom_up_by_hand():
    schedule = BottomUpAlpha(0.8, 0.5)
    assert schedule.at(0.0, 4) == (0.0, 0.0, 0.0, 0.0)
    assert schedule.at(0.1875, 4) == pytest.approx((0.8, 0.4, 0.0, 0.0))
    assert schedule.at(0.375, 4) == pytest.approx((0.8, 0.8, 0.8, 0.0))
    assert schedule.at(0.5, 4) == schedule.at(1.0, 4) == (0.8,) * 4
    assert BottomUpAlpha(1.0, 0.0).at(0.0, 2) == (1.0, 1.0)


@pytest.mark.parametrize("part", ["model", "network"])
def test_who_was_evaluated_trains_again(part):
    trainer = Trainer(model(), Recipe(2, batch_size=8), 16, depth=DepthSchedule(((0, 0.5),)))
    batch = (part[:8] for part in data())
    images, labels = batch
    trainer.train_on(images, labels)
    getattr(trainer, part).eval()
    trainer.train_on(images, labels)
    assert all(module.training for module in trainer.network.modules())


def test_every_layer_gets_its_alpha():
    network, depth = model(), DepthSchedule(((0, 1.0), (0.75, 0.5)))
    trainer = Trainer(network, Recipe(8, batch_size=16), 16, alpha=BottomUpAlpha(), depth=depth)
    seen = []
    for _ in range(8):
        trainer.train_on(*data())
        seen.append(trainer.network.blocks.alpha)
    assert seen[:4] == [0.0, (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (1.0, 1.0, 1.0, 0.0)]
    assert seen[4:] == [1.0] * 4 and len(trainer.network.blocks) == 2
    assert network.blocks.alpha == 1.0


@pytest.mark.parametrize("steps", [3, 4])
def test_a_training_that_is_loaded_stands_where_it_was(steps):
    alpha, depth = AlphaSchedule(0.0, 0.8, 0.5), DepthSchedule(((0, 1.0), (0.5, 0.5)))
    first, second = (Trainer(model(), Recipe(4, batch_size=16), 16, alpha=alpha, depth=depth)
                     for _ in range(2))  # fmt: skip
    for _ in range(steps):
        first.train_on(*data())
    second.load_state_dict(first.state_dict())
    assert len(second.network.blocks) == 2 and second.network.blocks.alpha == 0.8
    images = data().images
    assert torch.equal(second.network.eval()(images), first.network.eval()(images))


def test_a_list_of_blocks_has_one_alpha():
    network = model()
    network.blocks = nn.ModuleList(network.blocks)
    with pytest.raises(TypeError, match="a BottomUpAlpha; it takes a model with a FusedACNStack"):
        Trainer(network, Recipe(1), 16, alpha=BottomUpAlpha())


def test_dirac_weights_by_hand():
    network = model()
    mlps = [mlp for block in network.blocks for mlp in (block.token_mlp, block.channel_mlp)]
    before = [(mlp.fc1.weight.clone(), mlp.fc2.weight.clone()) for mlp in mlps]
    dirac_(network)
    for mlp, weights in zip(mlps, before, strict=True):
        for linear, old in zip((mlp.fc1, mlp.fc2), weights, strict=True):
            added = linear.weight - old
            rows = torch.arange(min(added.shape))
            expected = torch.zeros_like(added)
            expected[rows, rows] = 1
            torch.testing.assert_close(added, expected)
    with pytest.raises(ValueError, match="without an MLP"):
        dirac_(nn.Linear(3, 3))


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_scaled_weights_keep_the_variance(gain):
    """Of an input of variance 1 a linear layer makes one of gain^2."""
    layer = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300))
    nn.init.constant_(layer[1].weight, 3.0)
    scaled_(layer, gain)
    out = layer[0](torch.randn(200, 400))
    assert out.std().item() == pytest.approx(gain, rel=0.1)
    assert not layer[0].bias.any() and (layer[1].weight == 3).all()
    with pytest.raises(ValueError, match="gain is 0; it takes a positive number"):
        scaled_(layer, 0)


@pytest.mark.parametrize("shares", [((0, 0.5), (0.5, 1.0)), ((0, 1.0), (0.25, 0.5))])
def test_learned_scales_of_a_cut_network_are_trained(shares):
    network, samples = model(wiring="hybrid"), data()
    recipe = Recipe(4, batch_size=16, weight_decay=0.0)
    trainer = Trainer(network, recipe, 16, depth=DepthSchedule(shares))
    for _ in range(4):
        before = network.blocks.scales.detach().clone()
        trainer.train_on(*samples)
        read = len(trainer.network.blocks) + 1
        assert (network.blocks.scales != before)[:read].all()
        assert torch.equal(trainer.network.blocks.scales, network.blocks.scales[:read])


def test_what_the_schedule_froze_learns_again_and_nothing_else():
    network, samples = model(), data()
    network.head.bias.requires_grad_(False)
    trainer = Trainer(network, Recipe(4, batch_size=16), 16, freeze=FreezeSchedule(0.25, 1.0))
    start = copy.deepcopy(trainer.state_dict())
    for _ in range(3):
        trainer.train_on(*samples)
    assert not network.stem.weight.requires_grad
    trainer.load_state_dict(start)
    trainer.train_on(*samples)
    assert network.stem.weight.requires_grad
    while not trainer.done:
        trainer.train_on(*samples)
    assert network.stem.weight.requires_grad and not network.head.bias.requires_grad
