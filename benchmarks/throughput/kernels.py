"""Single operations against PyTorch's and other people's, timed without their launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acn_kernels import NormSpec, functional
from benchmarks.throughput.case import COPY_CEILING, Case, Missing, Setting, Way, Ways
from benchmarks.throughput.peers import compiled, imported, lazily

SHAPE = (65_536, 1024)  # N * D = 2^26: past every cache
TINY_SHAPE = (64, 128)
SOURCES = 13  # x_0 .. x_12 of a ViT-B
_EPS = 1e-5
_OF_BANDWIDTH = 1 / 0.9  # the time aimed at, in multiples of the copy's time for the same bytes


def _tensors(setting: Setting, count: int) -> list[Tensor]:
    shape = TINY_SHAPE if setting.tiny else SHAPE
    return [torch.randn(shape, **setting.place) for _ in range(count)]


def _norm(setting: Setting, width: int, kind: str = "layer") -> NormSpec:
    """A norm whose weight (and bias) want gradients."""
    weight, bias = (torch.randn(width, **setting.place).requires_grad_() for _ in range(2))
    return NormSpec(kind, weight, bias if kind == "layer" else None, _EPS)


def _detached(spec: NormSpec) -> NormSpec:
    return spec._replace(weight=spec.weight.detach(), bias=spec.bias.detach())


def _layer_norm(x: Tensor, spec: NormSpec) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], spec.weight, spec.bias, spec.eps)


def _ways(what: str, x: Tensor, bytes_moved: int) -> Ways:
    return Ways(f"{what}, {list(x.shape)}", bytes_moved=bytes_moved)


def copy(setting: Setting) -> Ways:
    """The ceiling: one read and one write."""
    source, target = _tensors(setting, 2)
    ways = _ways("copy", source, 2 * source.nbytes)
    ways.add("copy", lambda: target.copy_(source))
    return ways


def fork_forward(setting: Setting) -> Ways:
    (x,) = _tensors(setting, 1)
    spec = _detached(_norm(setting, x.shape[-1]))
    ways = _ways("norm forward", x, 2 * x.nbytes)
    ways.add("torch layer_norm", lambda: _layer_norm(x, spec))
    ways.add("compiled layer_norm", _with(compiled(lambda x: _layer_norm(x, spec), setting), x))
    ways.add_ours("fork", lambda: functional.norm(x, spec))
    return ways


def _with(function: Callable, *args: object) -> Way:
    return torch.no_grad()(lambda: function(*args))


def fork_backward(setting: Setting) -> Ways:
    """From dh and g to dx, dweight, dbias: the graph is built once, its backward is timed."""
    x, dh, g = _tensors(setting, 3)
    spec = _norm(setting, x.shape[-1])
    x.requires_grad_()
    wanted = (x, spec.weight, spec.bias)

    def backward(outputs: Sequence[Tensor]) -> Way:
        return lambda: torch.autograd.grad(outputs, wanted, (dh, g), retain_graph=True)[0]

    h, term = functional.fork(x, spec)
    ways = _ways("norm backward with a direct gradient", x, 4 * x.nbytes)
    # The view gives the plain graph a second consumer of x whose gradient is g.
    ways.add("torch layer_norm backward + add", backward((_layer_norm(x, spec), x.view_as(x))))
    ways.add_ours("fork", backward((h, term.x)))
    return ways


def join_forward(setting: Setting) -> Ways:
    xs = _tensors(setting, SOURCES)
    spec = _detached(_norm(setting, xs[0].shape[-1]))

    def loop(*xs: Tensor) -> Tensor:
        y = xs[0]
        for x in xs[1:]:
            y = y + x
        return _layer_norm(y, spec)

    moved = (SOURCES + 1) * xs[0].nbytes
    ways = _ways(f"sum of {SOURCES} and norm, forward", xs[0], moved)
    ways.add("torch adds + layer_norm", _with(loop, *xs))
    ways.add("compiled adds + layer_norm", _with(compiled(loop, setting), *xs))
    ways.add_ours("join", _with(functional.join, xs, spec))
    return ways


def accumulate_norm(setting: Setting) -> Ways:
    (x,) = _tensors(setting, 1)
    y = torch.zeros_like(x, dtype=torch.float32)
    spec = _detached(_norm(setting, x.shape[-1]))

    def plain(x: Tensor, y: Tensor) -> Tensor:
        y.add_(x)
        return _layer_norm(x, spec)

    ways = _ways("running sum and norm, inference", x, 2 * x.nbytes + 2 * y.nbytes)
    ways.add("torch add + layer_norm", _with(plain, x, y))
    ways.add("compiled add + layer_norm", _with(compiled(plain, setting), x, y))
    ways.add_ours("accumulate_norm", _with(lambda: functional.accumulate_norm(x, y, spec)[0]))
    return ways


def connections(setting: Setting) -> Ways:
    """All that stands between the layers of a network, forward and backward, without the layers:
    x_0 .. x_L come from outside, as do the gradients of what each next layer reads.

    Every way ends in norm(x_0 + ... + x_L), which the numeric error is taken on. What the layers
    read differs by design: a residual network's read norm(x_0 + ... + x_i).
    """
    xs = [x.requires_grad_() for x in _tensors(setting, SOURCES)]
    dhs = _tensors(setting, SOURCES)
    spec = _norm(setting, xs[0].shape[-1], "rms")
    weight, width = spec.weight, xs[0].shape[-1:]

    def rms(x: Tensor) -> Tensor:
        return F.rms_norm(x, width, weight, _EPS)

    def acn() -> list[Tensor]:
        y, outputs = xs[0], [rms(xs[0])]
        for i, x in enumerate(xs[1:], 1):
            y = y + x
            if i < SOURCES - 1:
                outputs.append(rms(x))
        return [*outputs, rms(y)]

    def residual(add_norm: Callable) -> list[Tensor]:
        y, outputs = xs[0], [rms(xs[0])]
        for x in xs[1:]:
            h, y = add_norm(x, y)
            outputs.append(h)
        return outputs

    def torch_add_norm(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = y + x
        return rms(y), y

    def liger() -> Callable:
        if not setting.on_gpu:
            raise Missing("Liger-Kernel runs on GPUs")
        kernel = imported("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction
        return lambda x, y: kernel.apply(x, y, weight, _EPS, 0.0, "llama", False)

    def fused() -> list[Tensor]:
        pairs = [functional.fork(x, spec) for x in xs[:-1]]
        terms = [*(term for _, term in pairs), functional.tap(xs[-1])]
        return [*(h for h, _ in pairs), functional.join(terms, spec)]

    def both_ways(outputs: Callable[[], list[Tensor]]) -> Way:
        def run() -> Tensor:
            made = outputs()
            torch.autograd.grad(made, [*xs, weight], dhs)
            return made[-1]

        return run

    fused_residual = lazily(liger)
    # Forward: read x_i, write h_i; the join reads all and writes one. Backward: the join reads its
    # sum and its gradient and writes g; then read dh_i, x_i and g, write dx_i (x_L's is g itself).
    passes = 2 * (SOURCES - 1) + SOURCES + 1 + 3 + 4 * (SOURCES - 1)
    ways = _ways(f"long connections of {SOURCES - 1} layers", xs[0], passes * xs[0].nbytes)
    ways.add("torch adds + norms", both_ways(acn))
    ways.add_ours("forks and join", both_ways(fused))
    ways.add("compiled adds + norms", both_ways(compiled(acn, setting)))
    ways.add("residual, torch adds + norms", both_ways(lambda: residual(torch_add_norm)))
    ways.add("residual, Liger fused add + RMSNorm", both_ways(lambda: residual(fused_residual)))
    return ways


def _aimed(build: Callable[[Setting], Ways], way: str) -> Callable[[Setting], Ways]:
    """``build``, with the aim that ``way`` reaches its share of the measured copy bandwidth."""

    def aimed(setting: Setting) -> Ways:
        ways = build(setting)
        at_most = _OF_BANDWIDTH if setting.on_gpu else None
        ways.compare(f"{way}: time of a copy of as many bytes", way, COPY_CEILING, at_most)
        return ways

    return aimed


_BUILDS = {
    "copy": copy,
    "fork_forward": _aimed(fork_forward, "fork"),
    "fork_backward": _aimed(fork_backward, "fork"),
    "join_forward": _aimed(join_forward, "join"),
    "accumulate_norm": _aimed(accumulate_norm, "accumulate_norm"),
    "connections": connections,
}
KERNEL_CASES = tuple(
    Case(f"kernel_{name}", build, rounds=21, single_kernel=True) for name, build in _BUILDS.items()
)
