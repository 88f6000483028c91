"""Leaving early, for Table 7: accuracy, FLOPs and time of networks that are cut or have exits."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from acn_kernels import analysis
from acn_kernels.inference import (
    EarlyExit,
    calibrate,
    cutoff_depth,
    entropy,
    exit_threshold,
    probe_logits,
)
from acn_kernels.inference.early_exit import first_exit
from acn_kernels.inference.probe import accuracy_by_depth
from acn_kernels.inference.segment_times import expected_seconds
from acn_kernels.timing import interleaved_seconds
from acn_kernels.training.digits import Split
from acn_kernels.training.losses import BranchLoss
from benchmarks.paper.measures import CUTOFF_DROP, depth_profile
from benchmarks.paper.spec import Metrics, Runs, over_seeds
from benchmarks.paper.trained import Trained, batches
from benchmarks.report.tables import table

NEVER, ALWAYS = 0.0, 3.0  # nats; ten classes have 2.3 at most
THRESHOLDS = (NEVER, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, ALWAYS)
_BATCH, _ROUNDS = 256, 9  # that are timed


def cut(model, data: Split, drop: float) -> Metrics:
    """The network cut at a point below its own accuracy: what it saves without an exit. drop: see
    :func:`calibrated`."""
    profile = depth_profile(model, data)
    cost = analysis.costs(model, data.images[:1], [profile["cutoff"], len(model.blocks)])
    nobody = [0.0] * (len(model.blocks) + 1)
    seconds = expected_seconds(model, data.images[:_BATCH], profile["cutoff"], [], nobody)
    return {
        **profile,
        "exit_accuracy": profile["accuracy_by_depth"][profile["cutoff"]],
        **calibrated(model, data, drop),
        "flops_speedup": (cost.flops[1] / cost.flops[0]).item(),
        "clock_speedup": seconds["full"] / seconds["truncated"],
    }


def at_branches(trained: Trained, data: Split, tau: float) -> Metrics:
    """Leaving at an entropy below ``tau`` at branches with heads of their own. The time is that
    expected from measured segments, batches as they come."""
    model, exits = trained.model, trained.loss.depths
    logits = torch.cat([
        trained.loss.logits_by_depth(model, images) for images, _ in batches(data)
    ], dim=1)  # fmt: skip
    found = _Left(model, data, exits, logits)
    leaving = found.depth(tau).bincount(minlength=len(model.blocks) + 1).double()
    seconds = expected_seconds(
        model, data.images[:_BATCH], len(model.blocks), exits, (leaving / len(data.labels)).tolist()
    )
    return {**found.at(tau), "clock_speedup": seconds["full"] / seconds["early exit"]}


def at_every_layer(trained: Trained, data: Split, tau: float, drop: float) -> Metrics:
    """Leaving at an entropy below ``tau`` at any layer, through the shared head.

    clock_speedup: the time of the full network over that of early exit, batches as they come.
    .._within_a_point: at the boldest threshold that costs at most a point of accuracy on the first
    half of ``data``; accuracy and FLOPs are those of the second half. .._by_threshold: at each of
    THRESHOLDS, from never to always; seconds are those of one sample.
    """
    model = trained.model
    exits = list(range(1, len(model.blocks)))
    logits = probe_logits(model, batches(data))[0][1:]
    found = _Left(model, data, exits, logits)
    half = len(data.labels) // 2
    seen, fresh = (
        _Left(model, Split(data.images[part], data.labels[part]), exits, logits[:, part])
        for part in (slice(half), slice(half, None))
    )
    with_input = torch.cat([seen.logits[:1], seen.logits])  # of which nobody reads the first
    bold = exit_threshold(with_input, seen.data.labels, exits, CUTOFF_DROP)
    seconds = _seconds(model, data.images[:_BATCH], exits, {*THRESHOLDS, tau, bold})
    boldly, by_threshold = fresh.at(bold), [found.at(t) for t in THRESHOLDS]
    return {
        **found.at(tau),
        "clock_speedup": seconds["full"] / seconds[tau],
        "exit_drop_within_a_point": boldly["accuracy"] - boldly["exit_accuracy"],
        "flops_speedup_within_a_point": boldly["flops_speedup"],
        "clock_speedup_within_a_point": seconds["full"] / seconds[bold],
        **calibrated(model, data, drop),
        "accuracy_by_threshold": [each["exit_accuracy"] for each in by_threshold],
        "flops_speedup_by_threshold": [each["flops_speedup"] for each in by_threshold],
        "seconds_by_threshold": [seconds[t] for t in THRESHOLDS],
    }


def early_exit(trained: Trained, data: Split, tau: float, drop: float) -> Metrics:
    """At branches where the loss has them, else at every layer."""
    if isinstance(trained.loss, BranchLoss):
        return at_branches(trained, data, tau)
    return at_every_layer(trained, data, tau, drop)


def calibrated(model, data: Split, drop: float) -> Metrics:
    """What acn.calibrate finds for ``drop`` on the first half of ``data``, held against the second
    half: what its cutoff and its exits lose there, and the least depth that would do there."""
    half = len(data.labels) // 2
    seen, fresh = (Split(*(t[part] for t in data)) for part in (slice(half), slice(half, None)))
    found = calibrate(model, batches(seen, _BATCH), drop)
    logits, labels = probe_logits(model, batches(fresh))
    accuracy = accuracy_by_depth(logits, labels)
    leaving = first_exit(entropy(logits), found.exits, found.threshold)
    chosen = logits[leaving, torch.arange(len(labels), device=leaving.device)]
    left = (chosen.argmax(-1) == labels).double().mean()
    return {
        "calibrated_for": drop,
        "calibrated_depth": found.depth,
        "best_depth": cutoff_depth(accuracy.cpu(), drop),
        "calibrated_drop": (accuracy[-1] - accuracy[found.depth]).item(),
        "calibrated_speedup": found.speed_up("truncated"),
        "calibrated_exit_drop": (accuracy[-1] - left).item(),
        "calibrated_exit_speedup": found.speed_up("early exit"),
    }


class _Left:
    """Where samples leave that are sure at ``exits``, with logits [exits + 1, N, classes]."""

    def __init__(self, model, data: Split, exits: list[int], logits: Tensor) -> None:
        self.model, self.data, self.exits, self.logits = model, data, exits, logits

    def depth(self, threshold: float) -> Tensor:
        """[N] on the CPU: the layers that each sample goes through."""
        return torch.tensor([*self.exits, len(self.model.blocks)])[self._place(threshold).cpu()]

    def at(self, threshold: float) -> Metrics:
        """What is lost and saved by leaving below ``threshold``."""
        place = self._place(threshold)
        chosen = self.logits[place, torch.arange(len(place), device=place.device)]
        depth = self.depth(threshold)
        flops, full = flops_spent(self.model, self.data, depth, self.exits)
        return {
            "accuracy": self._share_right(self.logits[-1]),
            "exit_accuracy": self._share_right(chosen),
            "mean_depth": depth.double().mean().item(),
            "flops_speedup": full / flops,
        }

    def _place(self, threshold: float) -> Tensor:
        return first_exit(entropy(self.logits), range(len(self.exits)), threshold)

    def _share_right(self, logits: Tensor) -> float:
        return (logits.argmax(-1) == self.data.labels).double().mean().item()


def flops_spent(model, data: Split, depth: Tensor, exits: list[int]) -> tuple[float, int]:
    """Mean FLOPs of a sample that leaves at ``depth`` [N], every head it passed included, and
    those of the full network."""
    layers = len(model.blocks)
    cost = analysis.costs(model, data.images[:1])
    head = 2 * model.head.in_features * model.head.out_features
    heads = torch.tensor([sum(e < k for e in exits) for k in range(layers + 1)])
    return (cost.flops + heads * head)[depth].double().mean().item(), cost.flops[-1].item()


def _seconds(model, images: Tensor, exits: list[int], thresholds: set[float]) -> dict:
    """Of one sample, measured: by threshold, and of the "full" network, that has no exits."""
    networks = {t: EarlyExit(model, exits, t) for t in thresholds}
    networks["full"] = EarlyExit(model, [], NEVER)
    ways = {t: lambda network=network: network(images) for t, network in networks.items()}
    samples = interleaved_seconds(ways, _ROUNDS, images.device)
    return {t: statistics.median(times) / len(images) for t, times in samples.items()}


def summary(runs: Runs) -> str:
    """Three tables: accuracy and speed-up of every network; both from never leaving to leaving at
    once; what calibration found."""
    return "\n\n".join([_speed_ups(runs), _by_threshold(runs), _calibrations(runs)])


def _speed_ups(runs: Runs) -> str:
    body = []
    for name, seeds in runs.items():
        full, left, flops, clock = (
            over_seeds(seeds, key).mean().item()
            for key in ("accuracy", "exit_accuracy", "flops_speedup", "clock_speedup")
        )
        body.append(
            [name, f"{100 * full:.1f}", f"{100 * left:.1f}", f"{flops:.2f}", f"{clock:.2f}"]
        )
    heads = ["network", "accuracy, %", "cut, or with exits, %", "speed-up in FLOPs", "in time"]
    return table(heads, body)


def _by_threshold(runs: Runs) -> str:
    curves = (
        ("accuracy, %", "accuracy_by_threshold", 100, "{:.1f}"),
        ("speed-up in FLOPs", "flops_speedup_by_threshold", 1, "{:.2f}"),
        ("µs a sample", "seconds_by_threshold", 1e6, "{:.1f}"),
    )
    body = [
        [
            f"{name}: {what}",
            *(template.format(scale * v) for v in over_seeds(seeds, key).mean(0).tolist()),
        ]
        for name, seeds in _with(runs, curves[0][1]).items()
        for what, key, scale, template in curves
    ]
    heads = ["leaving below", "never", *(f"{t:g}" for t in THRESHOLDS[1:-1]), "at once"]
    return table(heads, body)


def _calibrations(runs: Runs) -> str:
    body, found = [], _with(runs, "calibrated_depth")
    for name, seeds in found.items():
        depth, best = (over_seeds(seeds, key) for key in ("calibrated_depth", "best_depth"))
        lost, speed, exit_lost, exit_speed = (
            over_seeds(seeds, f"calibrated_{key}")
            for key in ("drop", "speedup", "exit_drop", "exit_speedup")
        )
        body.append([
            name, _listed(depth), _listed(best), f"{100 * lost.max():.1f}", f"{speed.mean():.2f}",
            f"{100 * exit_lost.max():.1f}", f"{exit_speed.mean():.2f}",
        ])  # fmt: skip
    heads = [
        "calibrated on half of the test images", "layers kept, by seed", "least that would do",
        "lost on the other half, points at most", "speed-up in time", "lost with exits", "speed-up",
    ]  # fmt: skip
    drops = {100 * m["calibrated_for"] for seeds in found.values() for m in seeds.values()}
    points = " or ".join(f"{drop:g}" for drop in sorted(drops))
    return f"acn.calibrate for at most {points} points on fresh data:\n\n{table(heads, body)}"


def _with(runs: Runs, key: str) -> Runs:
    return {name: seeds for name, seeds in runs.items() if all(key in m for m in seeds.values())}


def _listed(numbers: Tensor) -> str:
    return ", ".join(f"{n:g}" for n in numbers.tolist())
