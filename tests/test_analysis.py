"""Probes, contributions, CKA, noise and costs against hand counts and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from acn_kernels import FusedACNStack, analysis
from acn_kernels.analysis import Curves, Grid
from acn_kernels.models import create


def model(name: str = "acn_mixer_digits", **changes):
    network = create(name, **{"depth": 3, **changes})
    nn.init.normal_(network.head.weight, std=0.3)
    return network


def digits(*sizes: int):
    return [(torch.randn(n, 1, 8, 8), torch.randint(10, (n,))) for n in sizes]


def test_shared_head_is_the_accuracy_of_every_cut_network():
    network, data = model().eval(), digits(40, 9)
    curve = analysis.shared_head(network, data)["shared head"]
    for k in range(4):
        short = network.truncate(k)
        right = sum((short(x).argmax(-1) == labels).sum().item() for x, labels in data)
        assert curve[k].item() == pytest.approx(right / 49)


def test_linear_probes_find_what_is_there_and_no_more():
    """Classes that are a linear function of the pooled input at depth 0; and random ones."""
    network = model()
    (train, _), (test, _) = digits(300, 200)
    with torch.no_grad():
        pooled = [
            network.forward_head(network.forward_features(x, depth=0), pre_logits=True)
            for x in (train, test)
        ]
    direction = torch.randn(64)
    cut = (pooled[0] @ direction).median()
    labels = [(p @ direction > cut).long() for p in pooled]
    found = analysis.linear_probes(network, [(train, labels[0])], [(test, labels[1])])
    assert found["linear probe"][0] > 0.9
    noise = torch.randint(2, (200,))
    found = analysis.linear_probes(network, [(train, labels[0])], [(test, noise)])
    assert (found["linear probe"] - 0.5).abs().max() < 0.2
    assert all(p.grad is None for p in network.parameters())


def test_a_probe_is_the_minimum_of_its_loss():
    from acn_kernels.analysis.subnetworks import _fitted

    x, labels = torch.randn(80, 5, dtype=torch.float64), torch.randint(3, (80,))
    weight, bias = (t.requires_grad_() for t in _fitted(x, labels, 3, 0.1))
    loss = nn.functional.cross_entropy(x @ weight.T + bias, labels) + 0.05 * weight.square().sum()
    assert all(g.abs().max() < 1e-4 for g in torch.autograd.grad(loss, [weight, bias]))


def test_contributions_and_effective_depth_by_hand():
    accuracy = torch.tensor([[0.1, 0.5, 0.8, 0.9], [0.1, 0.1, 0.1, 0.9], [0.3, 0.2, 0.5, 0.3]])
    gained = analysis.contributions(accuracy)
    torch.testing.assert_close(gained[0], torch.tensor([0.4, 0.3, 0.1]))
    heat = analysis.contributions_over_training(accuracy).values
    assert heat.shape == (3, 3) and torch.equal(heat[:, 1], gained[1])
    depth = analysis.effective_depth(accuracy)
    assert depth[0].item() == pytest.approx((0.4 + 2 * 0.3 + 3 * 0.1) / 0.8, rel=1e-6)
    # The same as the area above the curve.
    assert depth[0].item() == pytest.approx((0.8 + 0.4 + 0.1) / 0.8, rel=1e-6)
    assert depth[1].item() == pytest.approx(3)
    assert math.isnan(depth[2].item())
    curves = torch.rand(100, 9)
    curves[:, -1] = curves[:, 0]
    assert analysis.effective_depth(curves).isnan().all()


def test_cka_by_its_definition():
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    centring = torch.eye(20, dtype=torch.float64) - 1 / 20
    k, l = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring  # noqa: E741
    hsic = lambda a, b: (a * b).sum()  # noqa: E731
    truth = hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()
    assert analysis.cka(x, y).item() == pytest.approx(truth.item(), rel=1e-10)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert analysis.cka(x, 3 * x @ rotation + 2).item() == pytest.approx(1)
    # By hand: x = (1, -1, 0), y = (1, 1, -2): orthogonal, so nothing alike.
    orthogonal = torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([[1.0], [1.0], [-2.0]])
    assert analysis.cka(*orthogonal).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="they take"):
        analysis.cka(x, y[:3])


@pytest.mark.parametrize("size", [1e-160, 1e160])
def test_cka_of_any_size(size):
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    assert analysis.cka(size * x, y).item() == pytest.approx(analysis.cka(x, y).item(), rel=1e-10)


def test_cka_of_what_is_constant():
    constant, x = torch.full((999, 3), 0.1, dtype=torch.float64), torch.randn(999, 2)
    assert analysis.cka(constant, x).isnan() and analysis.cka(x, constant).isnan()


def test_cka_of_depths_is_one_on_the_diagonal():
    grid = analysis.cka_by_depth(model(), digits(30))
    assert grid.values.shape == (4, 4)
    torch.testing.assert_close(grid.values.diagonal(), torch.ones(4).double())
    torch.testing.assert_close(grid.values, grid.values.T)


def test_gaussian_noise_has_its_deviation():
    grey = torch.full((50, 3, 16, 16), 0.5)
    noise = analysis.gaussian(grey, 0.1) - grey
    assert noise.std().item() == pytest.approx(0.1, rel=0.03)
    assert noise.mean().abs() < 0.003
    assert analysis.gaussian(grey, 3.0).aminmax() == (0, 1)


def test_salt_and_pepper_hits_its_share_of_pixels():
    grey = torch.full((50, 3, 32, 32), 0.5)
    noisy = analysis.salt_and_pepper(grey, 0.2)
    assert (noisy == noisy[:, :1]).all()
    for value in (0.0, 1.0):
        assert (noisy == value).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (noisy == 0.5).double().mean().item() == pytest.approx(0.8, abs=0.01)
    with pytest.raises(ValueError, match=r"p is 1\.5"):
        analysis.salt_and_pepper(grey, 1.5)


@pytest.mark.parametrize("add", [analysis.gaussian, analysis.salt_and_pepper])
def test_noise_refuses_images_of_another_scale(add):
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(TypeError, match=r"images are torch\.uint8"):
        add((255 * images).byte(), 0.1)
    for standardised in (images - 0.5, 2 * images.clamp(min=0.6)):
        with pytest.raises(ValueError, match="they take 0 to 1, before they are standardised"):
            add(standardised, 0.1)


def test_robustness_is_accuracy_on_the_noisy_images():
    network = model().eval()
    data = [(torch.rand(n, 1, 8, 8), torch.randint(10, (n,))) for n in (30, 20)]
    prepare = lambda images: (images - 0.5) * 4  # noqa: E731
    found = analysis.noise_robustness(network, data, prepare, sigmas=(0.5,), shares=(0.3,), seed=7)
    for name, add, level in (
        ("gaussian", analysis.gaussian, 0.5),
        ("salt and pepper", analysis.salt_and_pepper, 0.3),
    ):
        generator = torch.Generator().manual_seed(7)
        right = sum(
            (network(prepare(add(x, level, generator))).argmax(-1) == labels).sum().item()
            for x, labels in data
        )
        clean = sum((network(prepare(x)).argmax(-1) == t).sum().item() for x, t in data)
        assert found[name]["accuracy"].tolist() == pytest.approx([clean / 50, right / 50])


@pytest.mark.parametrize("shape", [(4, 1), (1,)])
def test_robustness_refuses_labels_of_other_samples(shape):
    data = [(torch.rand(4, 1, 8, 8), torch.zeros(shape, dtype=torch.long))]
    with pytest.raises(ValueError, match=r"4 samples take \(4,\)"):
        analysis.noise_robustness(model(), data, lambda images: images)


def linear(rows: int, fan_in: int, fan_out: int) -> int:
    return 2 * rows * fan_in * fan_out


def test_flops_of_a_mixer_by_hand():
    network = model(width=12, token_mlp=6, channel_mlp=20, classes=7)
    tokens, width = 16, 12  # 8 x 8 pixels in patches of 2
    stem, head = linear(tokens, 4, width), linear(1, width, 7)
    layer = 2 * linear(width, tokens, 6) + 2 * linear(tokens, width, 20)
    found = analysis.costs(network, torch.zeros(1, 1, 8, 8))
    assert found.flops.tolist() == [stem + head + k * layer for k in range(4)]
    stem_head = (4 * width + width) + 2 * width + (width * 7 + 7)
    norms, tokens_mlp = 4 * width, 2 * tokens * 6 + 6 + tokens
    each = norms + tokens_mlp + 2 * width * 20 + 20 + width
    assert found.parameters.tolist() == [stem_head + k * each for k in range(4)]
    assert found.bytes.tolist() == [4 * n for n in found.parameters.tolist()]


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_flops_of_a_vit_by_hand(pool):
    network = model("acn_vit_digits", width=16, heads=2, mlp_width=24, classes=7, pool=pool)
    tokens, width = 16 + (pool == "first"), 16
    stem, head = linear(16, 4, width), linear(1, width, 7)
    attention = 2 * (2 * tokens * tokens * width)  # q k' and the weighted sum of v
    mlp = 2 * linear(tokens, width, 24)
    layer = linear(tokens, width, 3 * width) + attention + linear(tokens, width, width) + mlp
    flops = [stem + head + k * layer for k in range(4)]
    if pool == "first":  # the last layer has keys and values of all tokens, all else of one
        last = (
            linear(1, width, width) + linear(tokens, width, 2 * width)
            + 2 * (2 * tokens * width) + linear(1, width, width) + 2 * linear(1, width, 24)
        )  # fmt: skip
        flops = [flops[0], *(stem + head + (k - 1) * layer + last for k in range(1, 4))]
    found = analysis.costs(network, torch.zeros(1, 1, 8, 8), [0, 1, 2, 3])
    assert found.flops.tolist() == flops


@pytest.mark.parametrize("include_input", [True, False])
def test_costs_of_a_stack_of_its_own(include_input):
    stack = FusedACNStack([nn.Linear(4, 4) for _ in range(2)], include_input=include_input)
    found = analysis.costs(stack, torch.zeros(1, 4))
    assert list(found.depths) == [0, 1, 2][not include_input :]
    assert found.parameters.tolist() == [20 * k for k in found.depths]
    assert found.flops.tolist() == [32 * k for k in found.depths]


def test_costs_refuse():
    with pytest.raises(ValueError, match="inputs holds 2"):
        analysis.costs(model(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(TypeError, match="model is a Linear"):
        analysis.costs(nn.Linear(2, 2), torch.zeros(1, 2))


def test_results_print_and_draw(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures")
    curves = Curves("accuracy", "depth", (0, 1), "share right", {"a": torch.tensor([0.25, 0.5])})
    both = curves.beside(twin=curves)
    assert "twin a" in str(both) and "0.25" in str(both)
    with pytest.raises(ValueError, match="other has x"):
        curves.beside(other=Curves("", "depth", (0, 2), "", {}))
    grid = Grid("norms", "layer", "epoch", "norm", torch.rand(3, 2))
    assert "layer 2" in str(grid)
    costs = analysis.costs(model(), torch.zeros(1, 1, 8, 8))
    assert "MFLOPs" in str(costs)
    for result in (both, grid, costs):
        result.draw(tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
