"""Early exit at several mean depths, against computing every sample at every layer."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import acn_kernels as acn
from acn_kernels.models import ImageClassifier
from benchmarks.throughput.case import FASTEST_PEER, Case, Missing, Setting, Way, Ways
from benchmarks.throughput.inference import inference
from benchmarks.throughput.networks import PlainLoop, plainly
from benchmarks.throughput.peers import ahead_of_time, compiled, lazily, onnx_runtime

MASKED, FULL, EXITING = "naive masked loop", "full depth", "EarlyExit"
_NEAR = 32  # candidate thresholds on either side that are looked at


def entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits) over the last axis, in nats and fp32."""
    log = logits.float().log_softmax(-1)
    return -(log.exp() * log).sum(-1)


def first_exit(certainty: Tensor, exits: Sequence[int], threshold: float) -> Tensor:
    """[N]: the first of ``exits`` at which the entropy in ``certainty`` [L+1, N] is below the
    threshold, else L."""
    depth = torch.full((certainty.shape[1],), len(certainty) - 1, device=certainty.device)
    for k in sorted(exits, reverse=True):
        depth[certainty[k] < threshold] = k
    return depth


class MaskedLoop(nn.Module):
    """What one writes first: all samples through all layers, those that are done masked out."""

    def __init__(self, model: ImageClassifier, exits: Sequence[int], threshold: float) -> None:
        super().__init__()
        self.model, self.exits, self.threshold = model, list(exits), threshold

    def forward(self, images: Tensor) -> Tensor:
        stack = self.model.blocks
        x = y = self.model.embed(images)
        logits = undecided = None
        for k, layer in enumerate(stack, 1):
            x = plainly(layer, x)
            y = y + x
            if k not in self.exits and k < len(stack):
                continue
            here = self.model.forward_head(stack.norm(y))
            sure = entropy(here) < self.threshold
            if logits is None:
                logits, undecided = here, ~sure
            else:
                logits = torch.where(undecided[:, None], here, logits)
                undecided = undecided & ~sure
        return logits


def threshold_for(certainty: Tensor, exits: Sequence[int], mean_depth: float) -> float:
    """A threshold whose mean depth comes closest to the one asked for, or within a twentieth of a
    layer of that: in the widest gap between measured entropies of ``certainty`` [L+1, N], so that
    ways which round differently still decide alike."""
    certainty = certainty.double().cpu()
    levels = certainty[list(exits)].flatten().unique()
    levels = torch.cat([levels[:1] / 2, levels, levels[-1:] + 1])
    between, gaps = (levels[1:] + levels[:-1]) / 2, levels.diff()

    def depth(i: int) -> float:
        return first_exit(certainty, exits, between[i].item()).double().mean().item()

    # The mean depth falls as the threshold rises.
    at = bisect.bisect_left(range(len(between)), -mean_depth, key=lambda i: -depth(i))
    near = range(max(at - _NEAR, 0), min(at + _NEAR, len(between)))
    misses = {i: abs(depth(i) - mean_depth) for i in near}
    closest = [i for i, miss in misses.items() if miss <= min(misses.values()) + 0.05]
    return between[max(closest, key=lambda i: gaps[i].item())].item()


def early_exit(
    preset: str, batch: int, mean_depth: int, every: int = 1, **targets: float
) -> Callable[[Setting], Ways]:
    """Exits after every ``every`` layers, the threshold set so that samples of random images run
    ``mean_depth`` layers on average. ``targets``: against full depth, and against the ideal."""

    @torch.no_grad()
    def build(setting: Setting) -> Ways:
        model, images, exits, early, facts = _exiting(preset, setting, batch, mean_depth, every)
        layers, cut_to = len(model.blocks), setting.size(mean_depth, len(model.blocks) // 2)
        masked = MaskedLoop(model, exits, early.threshold)
        ways = Ways(_words(preset, layers, images, exits), facts=facts)
        ways.add(MASKED, inference(masked, images))
        ways.add(f"{MASKED}, compiled", inference(compiled(masked, setting), images))
        ways.add_ours(FULL, inference(model, images), like=None)
        ways.add(f"{FULL}, compiled", inference(compiled(model, setting), images), like=FULL)
        cut = f"truncated to {cut_to}"
        ways.add_ours(cut, inference(model.truncate(cut_to), images), like=None, same_work=False)
        ways.add_ours(EXITING, lambda: early(images).logits, same_work=False)
        # The layers alone, run as early exit runs them: where it replays graphs, replayed too.
        whole, short = (acn.EarlyExit(m, [], 0.0) for m in (model, model.truncate(cut_to)))
        ways.add_ours(f"{EXITING} without exits", lambda: whole(images).logits, like=FULL)
        ways.add_ours(
            f"{EXITING} of {cut_to} layers", lambda: short(images).logits, like=None,
            same_work=False,
        )  # fmt: skip
        aims = targets if setting.on_gpu else {}
        for against in (MASKED, f"{MASKED}, compiled", f"{FULL}, compiled"):
            ways.compare(f"{EXITING} against {against}", EXITING, against)
        ways.compare(f"{EXITING} against {FULL}", EXITING, FULL, aims.get("full_depth"))
        ways.compare(f"{EXITING} against the stack cut to {cut_to}", EXITING, cut)
        for alike in (f"{EXITING} without exits", f"{EXITING} of {cut_to} layers"):
            ways.compare(f"{EXITING} against {alike}", EXITING, alike)
        share = facts["mean_depth"] / layers
        ways.compare(
            f"{EXITING} against the ideal, {share:.3f} of {FULL}", EXITING, FULL,
            aims.get("ideal"), factor=share,
        )  # fmt: skip
        return ways

    return build


def against_fastest_full_depth(
    preset: str, batch: int, mean_depth: int
) -> Callable[[Setting], Ways]:
    """Early exit, and the engine at full depth, against the fastest form in which a user would
    deploy all layers."""

    @torch.no_grad()
    def build(setting: Setting) -> Ways:
        model, images, exits, early, facts = _exiting(preset, setting, batch, mean_depth)
        plain = PlainLoop(model.blocks, model.blocks.norm)
        network = nn.Sequential(Stem(model), plain, Head(model)).eval()
        whole = acn.EarlyExit(model, [], 0.0)
        ways = Ways(_words(preset, len(model.blocks), images, exits), facts=facts)
        ways.add(FULL, inference(network, images))
        ways.add(f"{FULL}, compiled", inference(compiled(network, setting), images))
        ways.add(f"{FULL}, AOTInductor", ahead_of_time(network, images, setting))
        ways.add(f"{FULL}, ONNX Runtime", onnx_runtime(network, images, setting))
        engine = f"{EXITING} without exits"
        ways.add_ours(engine, lambda: whole(images).logits)
        ways.add_ours(EXITING, lambda: early(images).logits, like=None, same_work=False)
        on_cpu = not setting.on_gpu
        ways.compare("the engine at full depth", engine, FASTEST_PEER, 1.0 if on_cpu else None)
        share = facts["mean_depth"] / len(model.blocks)
        ways.compare(
            f"{EXITING} against the ideal, {share:.3f} of the fastest", EXITING, FASTEST_PEER,
            1 / 0.95 if on_cpu else None, factor=share,
        )  # fmt: skip
        return ways

    return build


# How the engine may go about a batch on a GPU; graphs are for small ones.
_ENGINE_WAYS = {
    "each exit waited for": {"graphs": "off", "lag": 0},
    "an exit late": {"graphs": "off"},
    "graphs between exits": {"graphs": "steps"},
    "one graph": {"graphs": "whole"},
}
_GRAPHED_BATCH = 64


def engine_on_gpu(preset: str, batch: int, mean_depth: int) -> Callable[[Setting], Ways]:
    """Early exit through the engine, on each way that it has on a GPU, against all layers from the
    CUDA graphs of torch.compile."""

    @torch.no_grad()
    def build(setting: Setting) -> Ways:
        model, images, exits, early, facts = _exiting(preset, setting, batch, mean_depth)
        network = nn.Sequential(
            Stem(model), PlainLoop(model.blocks, model.blocks.norm), Head(model)
        ).eval()
        whole = acn.EarlyExit(model, [], 0.0)
        ways = Ways(_words(preset, len(model.blocks), images, exits), facts=facts)
        ways.add(FULL, inference(network, images))
        graphs = f"{FULL}, reduce-overhead"
        ways.add(
            graphs, inference(compiled(network, setting, "reduce-overhead"), images), graphed=True
        )
        ways.add_ours(f"{EXITING} without exits", lambda: whole(images).logits)
        ways.add_ours(EXITING, lambda: early(images).logits, like=None, same_work=False)
        share = facts["mean_depth"] / len(model.blocks)
        aim = 1 / (0.9 if batch > _GRAPHED_BATCH else 0.8) if setting.on_gpu else None
        ideal = f"against the ideal, {share:.3f} of reduce-overhead"
        ways.compare(f"{EXITING} without exits", f"{EXITING} without exits", graphs)
        ways.compare(f"{EXITING} {ideal}", EXITING, graphs, aim, factor=share)
        for words, way in _ENGINE_WAYS.items():
            if way["graphs"] != "off" and batch > _GRAPHED_BATCH:
                continue
            name = f"engine, {words}"
            ways.add_ours(
                name, _engine_way(early, images, setting, way), like=EXITING, same_work=False
            )
            ways.compare(f"{name}, {ideal}", name, graphs, factor=share)
        return ways

    return build


def _engine_way(early: acn.EarlyExit, images: Tensor, setting: Setting, way: dict) -> Way:
    def make() -> Way:
        if not setting.on_gpu:
            raise Missing("it is a way of a GPU")
        given = (images, early.exits, early.threshold, early.criterion)
        try:
            engine = acn.Engine.from_model(early.model)
            engine.decided(*given, **way)
        except RuntimeError as error:  # no extension, or no such graphs
            raise Missing(str(error)) from error
        return lambda: engine.decided(*given, **way)[0]

    return lazily(make)


class Stem(nn.Module):
    """The model's part before its layers, as a module."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.embed(images)


class Head(Stem):
    """Its part behind them."""

    def forward(self, y: Tensor) -> Tensor:
        return self.model.forward_head(y)


def _exiting(
    preset: str, setting: Setting, batch: int, mean_depth: int, every: int = 1
) -> tuple[ImageClassifier, Tensor, range, acn.EarlyExit, dict[str, object]]:
    """A model, images, exits after every ``every`` layers, early exit at ``mean_depth`` of them
    on average, and what a reader must know of it."""
    model, images = _random(preset, setting, setting.size(batch, min(batch, 8)))
    layers = len(model.blocks)
    exits = range(every if layers > every else 1, layers, every if layers > every else 1)
    certainty = entropy(model.logits_by_depth(images))
    threshold = threshold_for(certainty, exits, setting.size(mean_depth, layers // 2))
    early = acn.EarlyExit(model, exits, threshold)
    reached = early(images).depth
    expected = first_exit(certainty, exits, threshold).to(reached.device)
    facts = {
        "mean_depth": reached.double().mean().item(),
        "threshold": threshold,
        "samples_by_depth": reached.bincount(minlength=layers + 1).tolist(),
        "samples_at_another_depth_than_the_plain_rule": (reached != expected).sum().item(),
    }
    return model, images, exits, early, facts


def _words(preset: str, layers: int, images: Tensor, exits: range) -> str:
    places = "after every layer" if exits.step == 1 else f"after every {exits.step} layers"
    return (
        f"{preset} with random weights, {layers} layers on {list(images.shape)}, "
        f"exits {places}, forward"
    )


def _random(preset: str, setting: Setting, batch: int) -> tuple[ImageClassifier, Tensor]:
    """A model with random weights, and images that differ in more than their noise."""
    size = acn.models.PRESETS[preset].image_size
    changes = {"depth": 4, "image_size": min(size, 64)} if setting.tiny else {}
    model = acn.models.create(preset, **changes)
    # A new head is zero: every entropy would be that of the uniform distribution.
    nn.init.normal_(model.head.weight, std=0.3)
    config = model.config
    shape = (batch, config.channels, config.image_size, config.image_size)
    coarse = F.interpolate(torch.randn(batch, config.channels, 4, 4), shape[-2:])
    images = (2 * coarse + torch.randn(shape)).to(**setting.place)
    return model.to(**setting.place).eval(), images


def _cifar(mean_depth: int, **targets: float) -> Case:
    build = early_exit("acn_mixer_patch4_cifar", 512, mean_depth, **targets)
    return Case(f"exit_mixer_cifar_mean{mean_depth}", build, rounds=31)


EXIT_CASES = (
    # 0.9 of the ideal: at most 1 / 0.9 of the time that the mean depth alone would take.
    _cifar(6, full_depth=1 / 2.4, ideal=1 / 0.9),
    _cifar(4),
    _cifar(8),
    _cifar(12),
    # The sizes of a request, a few of them, and of work that waits for nobody.
    *(
        Case(
            f"exit_mixer_cifar_b{batch}",
            against_fastest_full_depth("acn_mixer_patch4_cifar", batch, 6),
            rounds=31 if batch < 1000 else 7,
        )
        for batch in (1, 16, 256, 1024)
    ),
    *(
        Case(f"exit_engine_{name}_b{batch}", engine_on_gpu(preset, batch, 6), rounds=31)
        for name, preset in (
            ("mixer_cifar", "acn_mixer_patch4_cifar"),
            ("vit_small", "acn_vit_small_patch16_224"),
        )
        for batch in (1, 16, 256)
    ),
    Case("exit_vit_small_mean6", early_exit("acn_vit_small_patch16_224", 256, 6, 2), rounds=21),
)
