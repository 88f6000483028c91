"""DG, NG and FG against the closed forms of the paper's Table 1 and against cut networks."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F
from layers import Times
from tolerances import assert_close
from torch import Tensor, nn

import acn_kernels as acn
from acn_kernels.analysis import GradientHistory, gradients_by_step
from acn_kernels.blocks import FeedForwardStack, PostNormBlock, PostNormStack
from acn_kernels.models import create

# Of a 1D linear network: (class, options, the backward term's part beyond the DG, from w above,
# the forward term, from w below, whether layer i of L has a direct path).
LINEAR = {
    "ACN": (
        acn.FusedACNStack,
        {},
        lambda up: sum(math.prod(up[:j]) for j in range(1, len(up) + 1)),
        math.prod,
    ),
    "DG-only": (acn.FusedACNStack, {"direct_gradient_only": True}, lambda up: 0.0, math.prod),
    "ResNet": (
        acn.FusedACNStack,
        {"alpha": 0.0},
        lambda up: math.prod(1 + w for w in up) - 1,
        lambda down: math.prod(1 + w for w in down),
    ),
    "FFN": (FeedForwardStack, {}, lambda up: math.prod(up), math.prod),
}


@pytest.mark.parametrize("network", LINEAR)
def test_closed_forms_of_table_1(network):
    cls, options, beyond, forward = LINEAR[network]
    w = [random.uniform(0.4, 1.2) for _ in range(random.randint(1, 12))]
    x0 = random.uniform(0.5, 2.0)
    stack = cls([Times(v) for v in w], backend="torch", **options)
    batch = (torch.tensor([[x0]], dtype=torch.float64), None)
    got = acn.gradients(stack, batch, loss=lambda y, _: y.sum())
    for i in range(len(w)):
        below, above = forward(w[:i]) * x0, w[i + 1 :]
        if network == "FFN":
            direct = below if not above else 0.0
            mediated = below * math.prod(above) if above else 0.0
        else:
            direct, mediated = below, below * beyond(above)
        assert got.direct[i].item() == pytest.approx(direct, rel=1e-12)
        assert got.mediated[i].item() == pytest.approx(mediated, rel=1e-10, abs=1e-12)
        assert got.full[i].item() == pytest.approx(direct + mediated, rel=1e-12)
        assert got.ratio[i].item() == pytest.approx(direct / (direct + mediated), rel=1e-10)


def classifier(name: str, **changes):
    network = create(name, depth=4, **changes).double()
    nn.init.normal_(network.head.weight, std=0.3)
    return network


def batch_of_digits() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randint(10, (6,))


def ordinary(network, batch) -> list[Tensor]:
    """The gradients that an ordinary backward pass leaves, layer by layer."""
    twin = copy.deepcopy(network)
    F.cross_entropy(twin(batch[0]), batch[1]).backward()
    grads = [[p.grad for p in layer.parameters()] for layer in twin.blocks]
    return [torch.cat([g.flatten() for g in layer]) for layer in grads]


CASES = [
    ("acn_mixer_digits", {}, {}),
    ("acn_mixer_digits", {"wiring": "residual"}, {}),
    ("acn_mixer_digits", {"wiring": "feedforward"}, {}),
    ("acn_mixer_digits", {"closing": True}, {}),
    ("acn_mixer_digits", {"wiring": "hybrid"}, {}),
    ("acn_mixer_digits", {}, {"alpha": 0.6}),
    ("acn_vit_digits", {}, {"granularity": "sublayer"}),
    ("acn_vit_digits", {"wiring": "residual"}, {"granularity": "sublayer"}),
    ("acn_vit_digits", {"pool": "first"}, {"checkpoint": True}),
]


@pytest.mark.parametrize(
    ("name", "changes", "options"), CASES, ids=[f"{n[4:7]}-{c}-{o}" for n, c, o in CASES]
)
def test_the_parts_add_up_to_the_ordinary_gradient(name, changes, options):
    network, batch = classifier(name, **changes), batch_of_digits()
    for option, value in options.items():
        setattr(network.blocks, option, value)
    found = acn.gradients(network, batch)
    assert all(p.grad is None for p in network.parameters())
    assert all(getattr(network.blocks, option) == value for option, value in options.items())
    for i, truth in enumerate(ordinary(network, batch)):
        assert_close(found.full[i], truth, roundings=100, name=f"FG of layer {i + 1}")
        total = found.direct[i] + found.mediated[i]
        assert_close(total, truth, roundings=100, name=f"DG + NG of layer {i + 1}")
    assert found.mediated[0].norm() > 0 and found.mediated[-1].norm() < 1e-12 + (
        found.direct[-1].norm() if options.get("granularity") == "sublayer" else 0
    )


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_direct_part_is_what_a_dg_only_network_trains_on(granularity):
    network, batch = classifier("acn_vit_digits", mlp_width=32), batch_of_digits()
    network.blocks.granularity = granularity
    found = acn.gradients(network, batch)
    network.blocks.direct_gradient_only = True
    for i, truth in enumerate(ordinary(network, batch)):
        assert_close(found.direct[i], truth, roundings=100, name=f"DG of layer {i + 1}")


def test_mediated_part_of_a_plain_network_whose_long_connection_is_cut():
    """The loop of the definition, with layer i's own term detached where it enters the sum."""
    weights = [torch.randn(5, 5, dtype=torch.float64) * 0.5 for _ in range(4)]
    layers = []
    for weight in weights:
        layer = nn.Linear(5, 5, bias=False).double()
        layer.weight.data.copy_(weight)
        layers.append(nn.Sequential(layer, nn.Tanh()))
    scales = torch.rand(5, dtype=torch.float64) + 0.5
    x, target = torch.randn(2, 7, 5, dtype=torch.float64).unbind()
    stack = acn.FusedACNStack(layers, scales=scales)
    found = acn.gradients(stack, (x, target), loss=F.mse_loss)
    for i in range(4):
        leaves = [weight.clone().requires_grad_() for weight in weights]
        out, y = x, scales[0] * x
        for j, leaf in enumerate(leaves):
            out = torch.tanh(out @ leaf.T)
            y = y + scales[j + 1] * (out.detach() if j == i else out)
        (truth,) = torch.autograd.grad(F.mse_loss(y, target), leaves[i], allow_unused=True)
        truth = torch.zeros(5, 5, dtype=torch.float64) if truth is None else truth
        assert_close(found.mediated[i], truth.flatten(), roundings=10, among=1.0)


def test_a_frozen_layer_has_no_gradient_and_changes_no_other():
    network, batch = classifier("acn_vit_digits"), batch_of_digits()
    for frozen in (0, 1):
        truth = acn.gradients(network, batch)
        network.blocks[frozen].requires_grad_(False)
        found = acn.gradients(network, batch)
        network.blocks[frozen].requires_grad_(True)
        for kind in ("direct", "mediated", "full"):
            for i, (got, true) in enumerate(
                zip(getattr(found, kind), getattr(truth, kind), strict=True)
            ):
                assert len(got) == 0 if i == frozen else torch.allclose(got, true)


def test_history_is_the_mean_of_the_norms_that_steps_leave():
    network = classifier("acn_mixer_digits")
    history = GradientHistory(network)
    with pytest.raises(ValueError, match="nothing was noted"):
        history.grid()
    norms = []
    for _ in range(2):
        network.zero_grad()
        images, labels = batch_of_digits()
        F.cross_entropy(network(images), labels).backward()
        history.note()
        norms.append([
            math.sqrt(sum(p.grad.square().sum().item() for p in layer.parameters()))
            for layer in network.blocks
        ])  # fmt: skip
    history.next_column()
    truth = torch.tensor(norms, dtype=torch.float64).mean(0)[:, None]
    assert_close(history.grid().values, truth, roundings=10)


def test_a_norm_in_half_precision_may_be_beyond_its_range():
    stack = acn.FusedACNStack([nn.Linear(300, 300)]).half()
    for parameter in stack.parameters():
        parameter.grad = torch.full_like(parameter, 1000.0)
    history = GradientHistory(stack)
    history.note()
    history.next_column()
    truth = torch.tensor([[1000 * math.sqrt(300 * 301)]], dtype=torch.float64)
    assert_close(history.grid().values, truth)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_post_norm_blocks(alpha):
    """alpha = 0 has no long connection below the last layer."""
    stack = PostNormStack([PostNormBlock(8, 2, 16) for _ in range(3)], alpha=alpha).double()
    x, target = torch.randn(2, 2, 5, 8, dtype=torch.float64).unbind()
    found = acn.gradients(stack, (x, target), loss=F.mse_loss)
    for i, layer in enumerate(stack):
        truth = torch.autograd.grad(F.mse_loss(stack(x), target), list(layer.parameters()))
        truth = torch.cat([g.flatten() for g in truth])
        assert_close(found.direct[i] + found.mediated[i], truth, roundings=100)
        assert (found.direct[i].norm() > 0) == (alpha > 0 or i == 2)


def test_heat_maps_by_step():
    network = classifier("acn_mixer_digits")
    found = [acn.gradients(network, batch_of_digits()) for _ in range(3)]
    grids = gradients_by_step(found)
    assert set(grids) == {"DG", "NG", "FG", "DG/FG"}
    assert grids["NG"].values.shape == (4, 3)
    assert torch.equal(grids["DG/FG"].values[:, 1], found[1].ratio)
    with pytest.raises(ValueError, match="found is empty"):
        gradients_by_step([])


def test_what_it_refuses():
    with pytest.raises(TypeError, match="holds 0 FusedACNStacks"):
        acn.gradients(nn.Linear(3, 3), batch_of_digits())
    frozen = classifier("acn_mixer_digits").requires_grad_(False)
    with pytest.raises(ValueError, match="no layer with parameters"):
        acn.gradients(frozen, batch_of_digits())
