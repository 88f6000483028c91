"""Table 1 of the paper: gradients of 1D linear networks, through the stacks themselves.

Layers are x -> w_i x. Gradient of the output by w_i = backward term x forward term.
"""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
from layers import Times

from acn_kernels import FusedACNStack
from acn_kernels.blocks import FeedForwardStack


def products(weights):
    return math.prod(weights, start=Fraction(1))


def feedforward(w, i):
    return products(w[i + 1 :]) * products(w[:i])


def resnet(w, i):
    return products([1 + v for v in w[i + 1 :]]) * products([1 + v for v in w[:i]])


def acn(w, i):
    paths = sum(products(w[i + 1 : j + 1]) for j in range(i + 1, len(w)))
    return (1 + paths) * products(w[:i])


def direct_only(w, i):
    return products(w[:i])


NETWORKS = {
    "FFN": (FeedForwardStack, {}, feedforward),
    "ResNet": (FusedACNStack, {"alpha": 0.0}, resnet),
    "ACN": (FusedACNStack, {"alpha": 1.0}, acn),
    "DG-only": (FusedACNStack, {"direct_gradient_only": True}, direct_only),
}


def gradients(network, weights, x0):
    """d y / d w_i for every i, and the closed forms in exact arithmetic."""
    cls, options, closed_form = NETWORKS[network]
    stack = cls([Times(float(w)) for w in weights], backend="torch", **options)
    y = stack(torch.tensor([[float(x0)]], dtype=torch.float64))
    got = torch.autograd.grad(y, [layer.w for layer in stack])
    exact = [Fraction(w) for w in weights]
    return list(map(float, got)), [
        closed_form(exact, i) * Fraction(x0) for i in range(len(weights))
    ]


@pytest.mark.parametrize("network", NETWORKS)
def test_random_depth_and_weights(network):
    for _ in range(5):
        weights = [random.uniform(0.3, 1.2) for _ in range(random.randint(1, 24))]
        got, truth = gradients(network, weights, random.uniform(0.5, 2))
        for i, (one, true) in enumerate(zip(got, truth, strict=True)):
            assert one == pytest.approx(float(true), rel=1e-12), f"w_{i + 1} of {len(weights)}"


@pytest.mark.parametrize("network", NETWORKS)
def test_signed_weights_exactly(network):
    """Weights of eighths keep every product inside float64: equal to the last bit."""
    for _ in range(5):
        weights = [random.choice([-1, 1]) * random.randint(1, 7) / 8 for _ in range(9)]
        got, truth = gradients(network, weights, 1.5)
        assert got == truth


@pytest.mark.parametrize(
    ("network", "paths"),
    [("FFN", lambda depth, i: 1), ("ResNet", lambda depth, i: 2 ** (depth - 1)),
     ("ACN", lambda depth, i: depth - i), ("DG-only", lambda depth, i: 1)],
    ids=["FFN", "ResNet", "ACN", "DG-only"],
)  # fmt: skip
def test_number_of_backward_paths(network, paths):
    """Unit weights count paths: L-i+1 in an ACN, 2^(L-i) in a ResNet, times the forward ones."""
    depth = random.randint(2, 20)
    got, _ = gradients(network, [1.0] * depth, 1.0)
    assert got == [paths(depth, i) for i in range(depth)]


def test_full_gradient_is_direct_plus_network_mediated():
    """FG = DG + NG in every layer: the "1" of the ACN's backward term is the DG."""
    weights = [random.uniform(0.3, 1.2) for _ in range(12)]
    full, _ = gradients("ACN", weights, 1.0)
    direct, _ = gradients("DG-only", weights, 1.0)
    for i in range(12):
        mediated = direct[i] * sum(math.prod(weights[i + 1 : j + 1]) for j in range(i + 1, 12))
        assert full[i] == pytest.approx(direct[i] + mediated, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.875])
def test_between_the_ends(alpha):
    """u = alpha x + (1-alpha) y by hand: gradients from a recursion in exact arithmetic."""
    weights = [Fraction(random.randint(1, 7), 4) for _ in range(6)]
    stack = FusedACNStack([Times(float(w)) for w in weights], alpha=alpha)
    y = stack(torch.ones(1, 1, dtype=torch.float64))
    got = torch.autograd.grad(y, [layer.w for layer in stack])
    share = Fraction(alpha)
    for i, one in enumerate(got):
        (x, dx), (total, dtotal) = (Fraction(1), Fraction(0)), (Fraction(1), Fraction(0))
        for j, w in enumerate(weights):
            u, du = share * x + (1 - share) * total, share * dx + (1 - share) * dtotal
            x, dx = w * u, w * du + (u if j == i else 0)
            total, dtotal = total + x, dtotal + dx
        assert float(one) == pytest.approx(float(dtotal), rel=1e-12)
