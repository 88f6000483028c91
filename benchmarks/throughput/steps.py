"""Training steps: the fused stack against the loops that a user would write, and their compiled
forms, residual and ACN, all with the same blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from acn_kernels import FusedACNStack, dispatch
from acn_kernels.blocks import FeedForwardStack
from benchmarks.throughput.case import Case, Missing, Setting, Way, Ways
from benchmarks.throughput.networks import (
    BERT_128,
    BERT_512,
    MIXER_CIFAR,
    MIXER_SMALL,
    VIT_BASE,
    VIT_SMALL,
    VIT_TINY,
    LinearStack,
    Mixer,
    Network,
    Parts,
    PlainLoop,
    PlainResidual,
    linear_stack,
)
from benchmarks.throughput.peers import compiled

NAIVE, RESIDUAL, FUSED = "naive ACN", "residual", "FusedACNStack"
WITHOUT_Y = "FusedACNStack, y left out"
NAIVE_FIRST = "naive ACN, rows first"
LEAN = "FusedACNStack, norms and GELU made again"
AT_0, BETWEEN = "FusedACNStack, alpha 0", "FusedACNStack, alpha 0.5"
FIRST_ROW = "FusedACNStack, rows first"
FIRST_ROW_WITHOUT_Y = "FusedACNStack, rows first, y left out"


@dataclass
class Step:
    """Forward and backward of ``network`` from the gradient g of its output.

    ``run`` is the network, or a compiled form of it. Calling the step returns the gradient of x.
    """

    network: nn.Module
    x: Tensor
    g: Tensor
    rows: slice | None = None  # the tokens that g speaks of
    run: Callable[[Tensor], Tensor] | None = None
    leaf: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.run = self.run or self.network
        self.leaf = self.x.detach().clone().requires_grad_()
        self.g = self.g if self.rows is None else self.g[:, self.rows].contiguous()

    @property
    def eager(self) -> bool:
        return self.run is self.network

    def forward(self) -> Tensor:
        y = self.run(self.leaf)
        return y if self.rows is None else y[:, self.rows]

    def __call__(self) -> Tensor:
        self.network.zero_grad(set_to_none=True)
        self.leaf.grad = None
        self.forward().backward(self.g)
        return self.leaf.grad


def step(network: nn.Module, x: Tensor, g: Tensor, rows: slice | None = None) -> Way:
    return Step(network, x, g, rows)


def compiled_step(
    network: nn.Module,
    x: Tensor,
    g: Tensor,
    setting: Setting,
    mode: str = "default",
    rows: slice | None = None,
) -> Way:
    return Step(network, x, g, rows, run=compiled(network, setting, mode))


def add_backends(ways: Ways, x: Tensor, way: Callable[[str], Way]) -> None:
    """``way(backend)`` for each backend by name; those that cannot run here say why."""
    for backend in ("torch", "native", "triton"):
        obstacle = dispatch.obstacle_to(backend, x)
        call = way(backend) if obstacle is None else _missing(obstacle)
        ways.add_ours(f"{FUSED}, {backend}", call)


def _missing(why: str) -> Way:
    def call() -> Tensor:
        raise Missing(why)

    return call


def compare_with_loop(ways: Ways) -> None:
    """The fused stack with the plain loop: each as it is, and each compiled."""
    ways.compare("not slower than the naive loop by over 2 %", FUSED, NAIVE, 1.02)
    ways.compare("against the loop compiled", FUSED, f"{NAIVE}, compiled")
    ways.compare("both compiled", f"{FUSED}, compiled", f"{NAIVE}, compiled", 1.02)


def stack_against_loop(network: Network) -> Callable[[Setting], Ways]:
    """The plain loop, and the fused stack on every backend that this machine has."""

    def build(setting: Setting) -> Ways:
        layers, norm, x, g = network.make(setting)
        loop = PlainLoop(layers, norm)
        ways = Ways(f"{network.sized_for(setting).words}, forward and backward")
        ways.add(NAIVE, step(loop, x, g))
        ways.add(f"{NAIVE}, compiled", compiled_step(loop, x, g, setting))
        fused = FusedACNStack(layers, norm)
        ways.add_ours(FUSED, step(fused, x, g))
        ways.add_ours(f"{FUSED}, compiled", compiled_step(fused, x, g, setting))
        add_backends(ways, x, lambda name: step(FusedACNStack(layers, norm, backend=name), x, g))
        compare_with_loop(ways)
        return ways

    return build


def stack_against_peers(
    network: Network, targets: dict[tuple[str, str], float] | None = None
) -> Callable[[Setting], Ways]:
    """Eager and compiled residual and naive ACN, the fused stack, and what its y costs.

    ``targets``: the ratios of time aimed at on a GPU, by the two ways compared.
    """

    def build(setting: Setting) -> Ways:
        parts = network.make(setting)
        ways = Ways(f"{network.sized_for(setting).words}, forward and backward")
        _add_all_rows(ways, parts, setting)
        _add_first_row(ways, parts, setting)
        aims = (targets or {}) if setting.on_gpu else {}
        for way, against in (*_QUESTIONS, (FUSED, WITHOUT_Y), (FIRST_ROW, FIRST_ROW_WITHOUT_Y)):
            what = "cost of y: " if against.endswith("y left out") else ""
            ways.compare(f"{what}{way} against {against}", way, against, aims.get((way, against)))
        for way, target in ((FUSED, None), (LEAN, 0.65 if aims else None)):
            what = f"activations kept, {way} against {RESIDUAL}"
            ways.compare(what, way, RESIDUAL, target, of="kept")
        return ways

    return build


def _add_all_rows(ways: Ways, parts: Parts, setting: Setting) -> None:
    layers, norm, x, g = parts
    loop, residual = PlainLoop(layers, norm), PlainResidual(layers, norm)
    fused = FusedACNStack(layers, norm)
    learned = FusedACNStack(layers, norm, scales="learned").to(x.device)
    fixed = FusedACNStack(layers, norm, scales=[1.0] * (len(layers) + 1)).to(x.device)
    ways.add(NAIVE, step(loop, x, g))
    ways.add(f"{NAIVE}, compiled", compiled_step(loop, x, g, setting))
    ways.add_ours(FUSED, step(fused, x, g))
    ways.add_ours(f"{FUSED}, compiled", compiled_step(fused, x, g, setting))
    ways.add_ours(LEAN, step(FusedACNStack(layers, norm, checkpoint="elementwise"), x, g))
    ways.add(RESIDUAL, step(residual, x, g), like=None)
    ways.add(f"{RESIDUAL}, compiled", compiled_step(residual, x, g, setting), like=RESIDUAL)
    ways.add_ours(WITHOUT_Y, step(FeedForwardStack(layers, norm), x, g), like=None)
    ways.add_ours(f"{FUSED}, fixed scales", step(fixed, x, g))
    ways.add_ours(f"{FUSED}, learned scales", step(learned, x, g))


def _add_first_row(ways: Ways, parts: Parts, setting: Setting) -> None:
    """A head that reads the first token alone: g speaks of that row only. Ours leave out products
    of the last layer's other rows."""
    layers, norm, x, g = parts
    loop, residual = PlainLoop(layers, norm), PlainResidual(layers, norm)
    fused = FusedACNStack(layers, norm, rows="first")
    chain = FeedForwardStack(layers, norm, rows="first")
    row = slice(0, 1)
    ways.add(NAIVE_FIRST, step(loop, x, g, row), like=None)
    ways.add(
        f"{NAIVE_FIRST}, compiled", compiled_step(loop, x, g, setting, rows=row), like=NAIVE_FIRST
    )
    ways.add_ours(FIRST_ROW, step(fused, x, g, row), like=NAIVE_FIRST, same_work=False)
    ways.add(f"{RESIDUAL}, rows first", step(residual, x, g, row), like=None)
    ways.add_ours(FIRST_ROW_WITHOUT_Y, step(chain, x, g, row), like=None, same_work=False)


def linear_step(
    network: LinearStack, at_most: float | None = None
) -> Callable[[Setting], Ways]:  # fmt: skip
    """A stack of Linear + activation: its whole step is a few kernels."""

    def build(setting: Setting) -> Ways:
        layers, norm, x, g = network.make(setting)
        loop, tuned = PlainLoop(layers, norm), f"{NAIVE}, max-autotune"
        ways = Ways(f"{network.sized_for(setting).words}, forward and backward")
        ways.add(NAIVE, step(loop, x, g))
        ways.add(f"{NAIVE}, compiled", compiled_step(loop, x, g, setting))
        ways.add(tuned, compiled_step(loop, x, g, setting, "max-autotune"), graphed=True)
        ways.add_ours(FUSED, step(FusedACNStack(layers, norm), x, g))
        ways.add_ours(WITHOUT_Y, step(FeedForwardStack(layers, norm), x, g), like=None)
        ways.compare(f"{FUSED} against {tuned}", FUSED, tuned, at_most if setting.on_gpu else None)
        return ways

    return build


def mixer_step(network: Mixer) -> Callable[[Setting], Ways]:
    """A stack of Mixer blocks that are narrow enough to run as one operation, at any alpha: from
    the residual network over what is between to the ACN."""

    def build(setting: Setting) -> Ways:
        layers, norm, x, g = network.make(setting)
        loop, residual = PlainLoop(layers, norm), PlainResidual(layers, norm)
        between = FusedACNStack(layers, norm, alpha=0.5)
        ways = Ways(f"{network.sized_for(setting).words}, forward and backward")
        ways.add(NAIVE, step(loop, x, g))
        ways.add(f"{NAIVE}, compiled", compiled_step(loop, x, g, setting))
        ways.add_ours(FUSED, step(FusedACNStack(layers, norm), x, g))
        ways.add(RESIDUAL, step(residual, x, g), like=None)
        ways.add(f"{RESIDUAL}, compiled", compiled_step(residual, x, g, setting), like=RESIDUAL)
        ways.add_ours(AT_0, step(FusedACNStack(layers, norm, alpha=0.0), x, g), like=RESIDUAL)
        ways.add_ours(BETWEEN, step(between, x, g), like=None)
        ways.compare(f"{FUSED} against {NAIVE}, compiled", FUSED, f"{NAIVE}, compiled")
        for way in (FUSED, AT_0, BETWEEN):
            for against in (RESIDUAL, f"{RESIDUAL}, compiled"):
                ways.compare(f"{way} against {against}", way, against)
        return ways

    return build


_QUESTIONS = (
    (FUSED, NAIVE),
    (FUSED, f"{NAIVE}, compiled"),
    (FUSED, RESIDUAL),
    (FUSED, f"{RESIDUAL}, compiled"),
    (f"{FUSED}, compiled", f"{NAIVE}, compiled"),
    (FIRST_ROW, f"{RESIDUAL}, rows first"),
    (FIRST_ROW, f"{NAIVE_FIRST}, compiled"),
)
_VIT_BASE_TARGETS = {
    (FUSED, RESIDUAL): 1 / 1.11,
    (FUSED, f"{NAIVE}, compiled"): 1 / 1.04,
    (FIRST_ROW, f"{RESIDUAL}, rows first"): 1 / 1.26,
    (FIRST_ROW, f"{NAIVE_FIRST}, compiled"): 1 / 1.2,
    (FUSED, WITHOUT_Y): 1.01,
    (FIRST_ROW, FIRST_ROW_WITHOUT_Y): 1.003,
}

CPU_STEPS = (
    Case("cpu_step_vit_tiny", stack_against_loop(VIT_TINY)),
    Case("cpu_step_mixer_cifar", stack_against_loop(replace(MIXER_CIFAR, batch=16))),
    Case("cpu_step_mlp128", stack_against_loop(linear_stack(128, batch=2048))),
)
TRAIN_STEPS = (
    Case("train_vit_base", stack_against_peers(VIT_BASE, _VIT_BASE_TARGETS), rounds=15),
    Case("train_mlp128", linear_step(linear_stack(128), at_most=1 / 2), rounds=21),
    Case("train_mixer_cifar", mixer_step(MIXER_CIFAR), rounds=21),
    Case("train_vit_small", stack_against_peers(VIT_SMALL), rounds=15),
    Case("train_mixer_small", stack_against_peers(MIXER_SMALL), rounds=15),
    Case("train_bert_128", stack_against_peers(BERT_128), rounds=15),
    Case("train_bert_512", stack_against_peers(BERT_512), rounds=15),
    Case("train_mlp64", linear_step(linear_stack(64)), rounds=21),
    Case("train_mlp256", linear_step(linear_stack(256)), rounds=21),
)
