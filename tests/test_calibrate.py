"""A bound chosen on a calibration set holds on fresh data in 19 of 20 cases."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest
import torch
from torch import nn

import acn_kernels as acn
from acn_kernels.inference import entropy, probe_logits, segment_times
from acn_kernels.inference.choice import choose
from acn_kernels.inference.early_exit import first_exit
from acn_kernels.inference.paired import Paired, least_samples
from acn_kernels.models import create
from acn_kernels.training.digits import load_digits
from acn_kernels.training.fit import fit_side_by_side

Z = NormalDist().inv_cdf(0.975)


def log_likelihood(counts: Paired, won: float, drop: float) -> float:
    shares = (won + drop, won, 1 - 2 * won - drop)
    numbers = (counts.lost, counts.won, counts.total - counts.lost - counts.won)
    if any(s < 0 or (s == 0 and n) for s, n in zip(shares, numbers, strict=True)):
        return -math.inf
    return sum(n * math.log(s) for s, n in zip(shares, numbers, strict=True) if n)


@pytest.mark.parametrize("drop", [-0.3, -0.01, 0.0, 0.02, 0.25])
def test_score_takes_the_likeliest_share_under_the_drop(drop):
    """The closed form against a search over a fine grid."""
    for _ in range(5):
        counts = Paired(random.randint(0, 30), random.randint(0, 30), random.randint(60, 200))
        low, high = max(0.0, -drop), (1 - drop) / 2
        grid = [low + (high - low) * i / 20000 for i in range(20001)]
        best = max(grid, key=lambda won: log_likelihood(counts, won, drop))
        assert counts._won_share(drop) == pytest.approx(best, abs=2 * (high - low) / 20000)
        variance = 2 * best + drop - drop * drop
        expected = (counts.lost - counts.won - counts.total * drop) / math.sqrt(
            counts.total * variance
        )
        assert counts.score(drop) == pytest.approx(expected, rel=2e-2, abs=2e-2)


def test_interval_ends_where_the_score_says():
    counts = Paired(9, 4, 150)
    low, high = counts.interval(Z)
    assert counts.drop == pytest.approx(5 / 150) and low < counts.drop < high
    assert counts.score(low) == pytest.approx(Z) and counts.score(high) == pytest.approx(-Z)


def test_with_no_difference_the_bound_is_by_hand():
    """n d / sqrt(n d (1-d)) = z at n = z^2 (1-d) / d."""
    n = math.ceil(least_samples(0.01, Z))
    assert n == math.ceil(Z * Z * 99) == 381
    assert Paired(0, 0, n).score(0.01) <= -Z < Paired(0, 0, n - 1).score(0.01)
    assert least_samples(0.0, Z) == math.inf


@pytest.mark.parametrize(("lost", "won"), [(0.05, 0.02), (0.01, 0.0), (0.2, 0.2), (0.004, 0.001)])
def test_interval_covers_the_truth(lost, won):
    """Drawn 2,000 times: the true drop is above the upper end in about 1 of 40 cases at most."""
    truth, total = lost - won, 600
    shares = torch.tensor([lost, won, 1 - lost - won])
    draws = torch.multinomial(shares, 2000 * total, replacement=True).view(2000, total)
    above = below = 0
    for draw in draws:
        n_lost, n_won, _ = draw.bincount(minlength=3).tolist()
        low, high = Paired(n_lost, n_won, total).interval(Z)
        above += truth > high
        below += truth < low
    # 50 and 100 expected, and 5 deviations for chance.
    assert above <= 50 + 5 * math.sqrt(50)
    assert above + below <= 100 + 5 * math.sqrt(100)


CLASSES, DEPTH, EXITS = 5, 6, [1, 2, 3, 4, 5]


def population(size: int, signal: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [L+1, size, classes] of a network whose depths share most of their noise, and labels:
    signal[k] is how well depth k separates."""
    labels = torch.randint(CLASSES, (size,))
    common = torch.randn(size, CLASSES)
    own = torch.randn(len(signal), size, CLASSES)
    strength = torch.tensor(signal)[:, None, None]
    return common + 0.15 * own + strength * nn.functional.one_hot(labels, CLASSES), labels


@pytest.mark.parametrize("max_drop", [0.01, 0.03])
def test_bound_holds_on_fresh_data_in_19_of_20_cases(max_drop):
    """The true drops lie on both sides of the bound, some of them just beyond it."""
    full, sets, size = 2.5, 200, 1500
    logits, labels = population(60_000, [0.0, 2.0, 2.2, 2.3, 2.42, 2.47, full])
    right = logits.argmax(-1) == labels
    drop = (right[-1].double() - right.double()).mean(1)
    certainty = entropy(logits)
    failures = equal_size_failures = 0
    for _ in range(sets):
        order = torch.randperm(len(labels))
        seen, fresh = order[:size], order[size:]
        choice = choose(logits[:, seen], labels[seen], EXITS, max_drop)
        leaving = first_exit(certainty[:, fresh], EXITS, choice.threshold)
        lost = right[-1, fresh].double() - right[leaving, fresh].double()
        cut = right[-1, fresh].double() - right[choice.depth, fresh].double()
        failures += cut.mean() > max_drop or lost.mean() > max_drop
        equal_size_failures += cut[:size].mean() > max_drop or lost[:size].mean() > max_drop
    assert drop.min() <= max_drop < drop.max()
    # 10 of 200 are allowed; 4 deviations for chance.
    assert failures <= 10 + 4 * math.sqrt(9.5)
    assert equal_size_failures <= 10 + 4 * math.sqrt(9.5)


def test_choice_is_at_most_a_layer_deeper_than_the_best():
    """A clear gap, as trained networks have: everything from layer 3 on is as good as the full."""
    logits, labels = population(4000, [0.0, 0.5, 1.0, 2.5, 2.5, 2.5, 2.5])
    choice = choose(logits, labels, EXITS, 0.02)
    assert choice.depth in (3, 4)
    assert choice.depth_drop.low <= choice.depth_drop.measured <= choice.depth_drop.high <= 0.02
    assert choice.threshold > 0 and choice.threshold_drop.high <= 0.02
    expected = first_exit(entropy(logits), EXITS, choice.threshold)
    assert torch.equal(choice.exit_depths, expected)


def test_wherever_the_gap_is_choices_are_at_most_a_layer_deeper_than_the_best():
    """Networks that stop gaining at a layer of their own, calibrated again and again: in 19 of 20
    cases the bound holds on fresh data, and no more than one layer too many is kept."""
    max_drop, deeper, bad, sets = 0.02, 0, 0, 0
    for cutoff in range(1, DEPTH + 1):
        signal = [2.5 if k >= cutoff else 2.5 * k / (DEPTH + 1) for k in range(DEPTH + 1)]
        logits, labels = population(20_000, signal)
        right = logits.argmax(-1) == labels
        drop = (right[-1].double() - right.double()).mean(1)
        best = int((drop <= max_drop).double().argmax())
        assert best == cutoff
        for _ in range(25):
            seen = torch.randperm(len(labels))[:2000]
            depth = choose(logits[:, seen], labels[seen], EXITS, max_drop).depth
            sets, deeper, bad = sets + 1, deeper + (depth > best + 1), bad + (depth < best)
    # 7.5 of 150 are allowed; 4 deviations for chance.
    allowed = sets / 20 + 4 * math.sqrt(sets / 20)
    assert deeper <= allowed and bad <= allowed


def test_a_useless_upper_half_is_cut_and_a_useful_one_kept():
    same = torch.randn(1, 500, 3).expand(4, 500, 3)
    assert choose(same, torch.randint(3, (500,)), [1, 2], 0.05).depth == 0
    labels = torch.randint(3, (500,))
    sharp = 5 * nn.functional.one_hot(labels, 3).float()
    logits = torch.stack([torch.randn(500, 3), torch.randn(500, 3), torch.randn(500, 3), sharp])
    assert choose(logits, labels, [1, 2], 0.05).depth == 3


@pytest.mark.slow
def test_bound_holds_for_a_trained_network_on_digits_it_has_not_seen(seed):
    """Resampled: halves of what training left, calibrated on one, held to the other."""
    pytest.importorskip("sklearn", reason="digits")
    train, *rest = load_digits(0)
    torch.manual_seed(0)  # one network; the resampling below is new each time
    network = create("acn_mixer_digits")
    fit_side_by_side({"acn": network}, train, epochs=30, progress=False)
    torch.manual_seed(seed)
    logits, labels = probe_logits(network, rest)
    exits, max_drop, failures, cut = range(1, 8), 0.03, 0, 0
    for _ in range(200):
        seen, fresh = torch.randperm(len(labels)).chunk(2)
        choice = choose(logits[:, seen], labels[seen], exits, max_drop)
        right = logits[:, fresh].argmax(-1) == labels[fresh]
        leaving = first_exit(entropy(logits[:, fresh]), exits, choice.threshold)
        worst = min(right[choice.depth].sum(), right[leaving, torch.arange(len(fresh))].sum())
        failures += right[-1].sum() - worst > max_drop * len(fresh)
        cut += choice.depth < 8 and choice.threshold > 0
    # 10 of 200 are allowed; 4 deviations for chance. Nor does it hold by cutting nothing.
    assert failures <= 10 + 4 * math.sqrt(9.5)
    assert cut > 40, (cut, failures)


def batches(sizes, network):
    return [(torch.randn(n, 1, 8, 8), torch.randint(10, (n,))) for n in sizes]


def test_calibrate_end_to_end():
    network = create("acn_mixer_digits", depth=4).train()
    nn.init.normal_(network.head.weight, std=0.3)
    data = batches((16, 200, 200), network)
    found = acn.calibrate(network, iter(data), max_drop=0.02)
    assert network.training and found.samples == 416 and found.batch == 16
    assert found.exits == (1, 2, 3)  # the eighths of 4 layers that are whole, and rounded
    early = acn.EarlyExit(network.eval(), found.exits, found.threshold)
    images = torch.cat([x for x, _ in data])
    labels = torch.cat([y for _, y in data])
    logits, depth = early(images)
    assert found.mean_depth == pytest.approx(depth.double().mean().item(), abs=0.02)
    measured = (network(images).argmax(-1) == labels).double().mean() - (
        logits.argmax(-1) == labels
    ).double().mean()
    assert found.exit_drop.measured == pytest.approx(measured.item(), abs=0.005)
    assert all(seconds > 0 for seconds in found.seconds.values())
    for words in ("at most 2 points", "early exit", "speed-up", "19 of 20"):
        assert words in str(found)


def test_expected_time_is_that_of_the_segments(monkeypatch):
    """Times made up: 1 s a layer for the whole batch and 0.1 s a decision."""

    def made_up(ways, rounds, device):
        return {k: [4 + 3 * 0.1 if k == "deciding" else float(k)] for k in ways}

    monkeypatch.setattr(segment_times, "interleaved_seconds", made_up)
    network = create("acn_mixer_digits", depth=4)
    leaving = [0.0, 0.5, 0.25, 0.0, 0.25]
    seconds = segment_times.expected_seconds(
        network, torch.zeros(10, 1, 8, 8), 2, [1, 2, 3], leaving
    )
    expected = 0.5 * 1 + 0.25 * (2 + 0.1) + 0.25 * (4 + 0.3)
    assert seconds["early exit"] == pytest.approx(expected / 10)
    assert seconds["truncated"] == pytest.approx(0.2) and seconds["full"] == pytest.approx(0.4)


def test_too_small_a_set_is_refused_with_the_number_it_takes():
    network = create("acn_mixer_digits", depth=4)
    with pytest.raises(ValueError, match=r"data holds 50 samples.*at least 765"):
        acn.calibrate(network, batches((50,), network), max_drop=0.005)
    with pytest.raises(ValueError, match="no number of samples is enough"):
        acn.calibrate(network, batches((50,), network), max_drop=0.0)
    with pytest.raises(ValueError, match="max_drop is -1"):
        acn.calibrate(network, batches((50,), network), max_drop=-1)
    with pytest.raises(ValueError, match="exits holds 4"):
        acn.calibrate(network, batches((50,), network), exits=[4])
