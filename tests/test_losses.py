"""Losses, the trainer and Synaptic Intelligence against the definitions written out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from timm_models import import_timm
from torch import nn

import acn_kernels as acn
from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.blocks import TransformerBlock
from acn_kernels.models import create
from acn_kernels.training import continual
from acn_kernels.training.digits import Split
from acn_kernels.training.losses import (
    BranchLoss,
    DistillationLoss,
    LayerSkipLoss,
    SharedHeadLoss,
    Step,
    deep_supervision,
    final_loss,
    layer_dropout,
    rising_weights,
)
from acn_kernels.training.trainer import Recipe, Trainer

STEP = Step(0, 10)


def model(**changes):
    network = create("acn_mixer_digits", **{"depth": 4, **changes})
    nn.init.normal_(network.head.weight, std=0.3)
    return network


def batch(size: int = 6):
    return torch.randn(size, 1, 8, 8), torch.randint(10, (size,))


def test_rising_weights_of_table_7():
    assert rising_weights(4).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    layers = 16
    expected = [2 * (index + 1) / (layers * (layers + 1)) for index in range(layers)]
    assert rising_weights(layers).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("wiring", ["acn", "residual", "densenet"])
def test_shared_head_loss_is_the_sum_over_cut_networks(wiring):
    network, (images, labels) = model(wiring=wiring), batch()
    weights = [0.5, 0.0, 0.2, 1.0]
    loss = SharedHeadLoss(weights)(network, images, labels, STEP)
    truth = sum(
        w * F.cross_entropy(network.truncate(k)(images), labels) for k, w in enumerate(weights, 1)
    )
    torch.testing.assert_close(loss, truth)
    got = torch.autograd.grad(loss, network.blocks[0].parameters())
    torch.testing.assert_close(got, torch.autograd.grad(truth, network.blocks[0].parameters()))
    with pytest.raises(ValueError, match="one for each of 4 layers"):
        SharedHeadLoss([1.0])(network, images, labels, STEP)


def test_distillation_by_hand():
    network, teacher, (images, labels) = model(), model().train(), batch()
    loss = DistillationLoss(teacher, weight=0.3, temperature=4.0)(network, images, labels, STEP)
    p = (teacher(images) / 4).softmax(-1)
    q = (network(images) / 4).softmax(-1)
    apart = (p * (p / q).log()).sum(-1).mean()
    truth = 0.7 * F.cross_entropy(network(images), labels) + 0.3 * 16 * apart
    torch.testing.assert_close(loss, truth)
    loss.backward()
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    # Of a teacher that agrees in all, nothing is left to learn but the labels.
    alike = DistillationLoss(network)(network, images, labels, STEP)
    torch.testing.assert_close(alike, 0.5 * F.cross_entropy(network(images), labels))
    # Both see what is made of the inputs.
    flipped = DistillationLoss(teacher, augment=lambda images: images.flip(-1))
    seen = DistillationLoss(teacher)(network, images.flip(-1), labels, STEP)
    torch.testing.assert_close(flipped(network, images, labels, STEP), seen)
    for wrong in ({"weight": 1.5}, {"weight": math.nan}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DistillationLoss(teacher, **wrong)


def test_branches_have_heads_of_their_own():
    network, (images, labels) = model(), batch()
    loss = BranchLoss(64, 10, [1, 3], [0.8, 0.4])
    truth = F.cross_entropy(network(images), labels)
    rows = []
    for k, head, weight in ((1, loss.heads[0], 0.8), (3, loss.heads[1], 0.4)):
        rows.append(head(network.forward_features(images, depth=k).mean(1)))
        truth = truth + weight * F.cross_entropy(rows[-1], labels)
    torch.testing.assert_close(loss(network, images, labels, STEP), truth)
    by_depth = loss.logits_by_depth(network, images)
    torch.testing.assert_close(by_depth, torch.stack([*rows, network(images)]))
    every = deep_supervision(64, 10, 4)
    assert every.depths == [1, 2, 3] and len(set(every.weights)) == 1


def test_layer_skip_by_hand():
    loss = LayerSkipLoss(p_max=0.1, e_scale=0.2, rotation=2)
    assert loss.drop_probabilities(3, Step(0, 11)) == [0, 0, 0]
    last = loss.drop_probabilities(3, Step(10, 11))
    assert last == pytest.approx([0, 0.1 * (math.sqrt(2) - 1), 0.1])
    # e = 0.2 * (0, 1, 3), and 3 + 0.2 * (0 + 1 + 2) for the last of four layers.
    for index, taking_part in ((0, [0.0, 0, 0.6, 3.6]), (1, [0, 0.2, 0, 3.6])):
        expected = [w / sum(taking_part) for w in taking_part]
        assert loss.exit_weights(4, Step(index, 10)) == pytest.approx(expected)
    network = model(wiring="residual")
    value = loss(network, *batch(), Step(5, 10))
    value.backward()
    assert value.isfinite() and not network.blocks[0]._forward_hooks
    with pytest.raises(ValueError, match=r"alpha is 1\.0"):
        loss(model(), *batch(), STEP)


def test_a_rotation_that_is_none():
    with pytest.raises(ValueError, match="rotation is 0; it takes an integer of at least 1"):
        LayerSkipLoss(rotation=0)
    with pytest.raises(ValueError, match="e_scale is nan; it takes a number from 0"):
        LayerSkipLoss(e_scale=float("nan"))


def test_a_dropped_layer_adds_nothing():
    network, (images, _) = model(wiring="residual"), batch(400)
    x = network.embed(images)
    stack = network.blocks[:1]
    with layer_dropout(stack, [0.3]):
        y = stack(x)
    dropped = torch.isclose(y, stack(x, depth=0), atol=1e-6).all((1, 2))
    whole = torch.isclose(y, stack(x), atol=1e-6).all((1, 2))
    assert (dropped ^ whole).all()
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=0.12)


def test_layers_are_dropped_whole():
    stack = acn.FusedACNStack([TransformerBlock(8, 2)], alpha=0.0, granularity="sublayer")
    with (
        pytest.raises(ValueError, match="granularity is 'sublayer'"),
        layer_dropout(stack, [1.0]),
    ):
        pass


@pytest.mark.parametrize("name", [None, "x"])
def test_a_dropped_block_of_a_loop_hands_on_what_it_got(name):
    vit = import_timm().create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    blocks, x = acn.convert(vit).blocks, torch.randn(2, 5, 192)
    with layer_dropout(blocks, [1.0, 1.0]):
        for block in blocks:
            assert torch.equal(block(x) if name is None else block(x=x), x)
        assert torch.equal(blocks(x), x)


def test_trainer_resumes_bit_for_bit(tmp_path):
    data = Split(*batch(50))
    recipe = Recipe(epochs=4, batch_size=16, seed=3)

    def fresh():
        torch.manual_seed(5)
        network = model(wiring="residual")
        branches = BranchLoss(64, 10, [2], [0.5])
        return Trainer(network, recipe, 50, branches, AlphaSchedule(0.0, 1.0, 0.5))

    whole = fresh()
    losses = [whole.train_epoch(data) for _ in range(4)]
    assert whole.done and whole.epoch == 4 and whole.model.blocks.alpha == 1
    assert losses[-1] < losses[0]
    first = fresh()
    first.train_epoch(data)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = fresh()
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert second.epoch == 1
    assert [second.train_epoch(data) for _ in range(3)] == losses[1:]
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_trainer_is_the_plain_loop():
    """AdamW written with torch's own optimiser, learning rates by hand."""
    images, labels = batch(20)
    data, recipe = Split(images.double(), labels), Recipe(epochs=2, batch_size=8, seed=1)
    # In fp64: Adam makes full steps of gradients that are nothing but rounding.
    network = model().double()
    twin = copy.deepcopy(network)
    trainer = Trainer(network, recipe, 20)
    optimizer = torch.optim.AdamW(twin.parameters(), weight_decay=recipe.weight_decay)
    for step in range(6):
        if step % 3 == 0:
            generator = torch.Generator().manual_seed(100_003 + step // 3)
            order = torch.randperm(20, generator=generator)
        chosen = order[8 * (step % 3) : 8 * (step % 3) + 8]
        factor = (step + 1) / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 3)) / 2
        optimizer.param_groups[0]["lr"] = recipe.lr * factor
        optimizer.zero_grad()
        final_loss(twin, data.images[chosen], data.labels[chosen], STEP).backward()
        optimizer.step()
    for _ in range(2):
        trainer.train_epoch(data)
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_samples_of_like_length_share_a_batch():
    images, labels = torch.rand(230, 1, 8, 8), torch.arange(230) % 10
    lengths, seen = torch.randint(1, 9, (230,)), []
    images[:, 0, 0, 0] = lengths.float()

    def loss(network, images, labels, step):
        seen.append(images[:, 0, 0, 0].long())
        return final_loss(network, images, labels, step)

    trainer = Trainer(
        model(), Recipe(2, batch_size=4), 230, loss, length=lambda images: images[:, 0, 0, 0]
    )
    for _ in range(2):
        trainer.train_epoch(Split(images, labels))
    first, second = torch.cat(seen).split(230)
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, lengths.sort().values)
    assert not torch.equal(first, second)
    padding = sum((batch.max() - batch).sum() for batch in seen)
    assert padding < 0.3 * sum((batch.max() - batch).sum() for batch in lengths.split(4))


def test_batches_of_an_epoch_are_augmented_and_a_step_of_ones_own_is_not():
    images, labels = batch(8)
    seen = []

    def loss(network, images, labels, step):
        seen.append(images)
        return final_loss(network, images, labels, step)

    def shifted(images):
        return images + torch.rand(len(images), 1, 1, 1)

    trainer = Trainer(model(), Recipe(3, batch_size=4), 8, loss, augment=shifted)
    trainer.train_epoch(Split(images, labels))
    trainer.train_epoch(Split(images, labels))
    trainer.train_on(images, labels)
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:4])
    given = {image[0].sub(image[0, 0, 0]).sum().item() for image in images.double()}
    for epoch in (first, second):
        assert not torch.equal(epoch, images) and len(epoch) == 8
        came_from = [image[0].sub(image[0, 0, 0]).sum().item() for image in epoch.double()]
        assert all(min(abs(one - other) for other in given) < 1e-4 for one in came_from)
    assert not torch.equal(first, second) and torch.equal(seen[4], images)


def test_autocast_covers_the_forward_pass_alone():
    images, labels = batch(8)
    network, seen = model(), []
    network.head.register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
    trainer = Trainer(network, Recipe(1, batch_size=8), 8, autocast=torch.bfloat16)
    truth = copy.deepcopy(network)
    with torch.autocast("cpu", torch.bfloat16):
        loss = final_loss(truth, images, labels, STEP)
    loss.backward()
    assert trainer.train_on(images, labels) == loss
    assert set(seen) == {torch.bfloat16} and not torch.is_autocast_enabled("cpu")
    for one, other in zip(network.parameters(), truth.parameters(), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("times", [0.5, 2.0])
def test_gradients_are_scaled_down_to_their_greatest_norm(times):
    images, labels = batch(8)
    network = model().double()
    twin = copy.deepcopy(network)
    final_loss(twin, images.double(), labels, STEP).backward()
    norm = nn.utils.get_total_norm([p.grad for p in twin.parameters() if p.grad is not None])
    recipe = Recipe(1, batch_size=8, max_norm=times * norm.item())
    Trainer(network, recipe, 8).train_on(images.double(), labels)
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad * min(times, 1))


def test_synaptic_intelligence_on_two_numbers():
    """loss = 3 a + 0 b, steps of plain descent by hand."""
    theta = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    si = continual.SynapticIntelligence([theta], strength=2.0)
    for _ in range(2):
        (3 * theta[0] + si.penalty()).backward()
        si.before_step()
        with torch.no_grad():
            theta -= 0.1 * theta.grad
        theta.grad = None
        si.after_step()
    si.end_task()
    # Each step moves a by -0.3 at gradient 3: w = 2 * 0.9; total change -0.6.
    assert si.importance[0].tolist() == pytest.approx([1.8 / (0.36 + 0.1), 0.0])
    with torch.no_grad():
        theta += torch.tensor([0.5, 7.0])
    omega = 1.8 / 0.46
    assert si.penalty().item() == pytest.approx(2 * omega * 0.25)
    # On the next task the gradient of the penalty does not count as the task's.
    (theta[1] * 4 + si.penalty()).backward()
    si.before_step()
    assert si._gradients[0].tolist() == pytest.approx([0.0, 4.0])


def test_forgetting_and_average_accuracy_by_hand():
    accuracy = torch.tensor([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.5, 0.85, 0.6]])
    assert continual.average_accuracy(accuracy) == pytest.approx((0.5 + 0.85 + 0.6) / 3)
    assert continual.forgetting(accuracy) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.85)) / 2)
    with pytest.raises(ValueError, match="one task"):
        continual.forgetting(torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        continual.average_accuracy(torch.ones(2, 3))
