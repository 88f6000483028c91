"""``python -m benchmarks.predict``: what the counts say each GPU target will come to.

No GPU is needed: bytes and products are counted from the shapes (passes per layer as
tests/test_passes.py counts them, traffic of the whole-stack kernels as acn_kernels.kernels holds
them to) and divided by ceilings, which are assumptions unless given; a run's files hold measured
ones. Launches, tails and caches between kernels are left out, so that this is an upper bound of
what may be expected, and a place to start when a measurement differs.
``python -m benchmarks.report DIR`` sets what a run measured beside it.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

from benchmarks.throughput import exits, inference, steps


class Ceilings(NamedTuple):
    """Bytes or operations per second that a well-made kernel reaches."""

    copy: float = 4.1e12  # of an H200's 4.8 TB/s
    matmul: float = 6.5e14  # dense bf16
    l2: float = 5.5e12  # reads that the second-level cache answers
    scalar: float = 2.9e13  # fp32 instructions: 132 multiprocessors of 128 lanes at 1.7 GHz


class Measured(NamedTuple):
    """Where a run holds what is predicted: the case, and the two of its ways."""

    case: str
    way: str
    against: str
    of: str = "time"  # or "kept", as in Comparison


class Prediction(NamedTuple):
    """ratio: how many times faster; where the target is "at most" something, the share itself."""

    workload: str
    peer: str
    target: str
    ratio: float
    why: str
    measured: Measured

    @property
    def at_most(self) -> bool:
        return self.target.endswith("at most")


BF16 = 2
ERF = 25  # instructions of an exact GELU


def vit_step(top: Ceilings) -> list[Prediction]:
    """ViT-B/16 at batch 256, forward and backward of its 12 blocks."""
    rows, tokens, width, depth = 256 * 196, 196, 768, 12
    products = 3 * (24 * rows * width**2 + 4 * rows * tokens * width) / top.matmul
    one_pass = rows * width * BF16 / top.copy
    copies = 6  # of q, k and v's gradients, the same for all

    def step(forward: int, backward: int) -> float:
        return products + (forward + backward + copies) * one_pass

    dead = 5 / 6 * products / depth  # all but the keys and values of the last block
    ours, pooled = step(13, 24), step(12, 23) - dead
    eager, naive = step(18, 37), step(14, 28)
    shape = "ViT-B/16, batch 256, step"

    def of(way: str, against: str) -> Measured:
        return Measured("train_vit_base", way, against)

    return [
        Prediction(f"{shape}, rows first", "residual, eager", "1.26", eager / pooled,
                   "passes 12 + 23 against 18 + 37; dead rows of one block in twelve",
                   of(steps.FIRST_ROW, f"{steps.RESIDUAL}, rows first")),
        Prediction(f"{shape}, rows first", "naive ACN, compiled", "1.20", naive / pooled,
                   "passes 12 + 23 against 14 + 28; dead rows",
                   of(steps.FIRST_ROW, f"{steps.NAIVE_FIRST}, compiled")),
        Prediction(f"{shape}, all rows", "residual, eager", "1.11", eager / ours,
                   "passes 13 + 24 against 18 + 37", of(steps.FUSED, steps.RESIDUAL)),
        Prediction(f"{shape}, all rows", "naive ACN, compiled", "1.04", naive / ours,
                   "passes 13 + 24 against 14 + 28", of(steps.FUSED, f"{steps.NAIVE}, compiled")),
        Prediction(f"{shape}, cost of y", "the same without y", "1.01 at most",
                   ours / (ours - 2 * one_pass), "two passes, one in join and one in fork",
                   of(steps.FUSED, steps.WITHOUT_Y)),
    ]  # fmt: skip


def linear_stack(top: Ceilings) -> list[Prediction]:
    """16 layers of Linear + GELU, D 128, batch 65,536: the slowest of its resources decides."""
    rows, width, depth, tile = 65_536, 128, 16, 64
    one_pass = rows * width * BF16 / top.copy
    products = 2 * depth * rows * width**2 / top.matmul
    weights = depth * rows / tile * width**2 * BF16 / top.l2
    gelu = depth * rows * width * ERF / top.scalar
    forward = max(products, weights, gelu, 2 * one_pass)
    kept = forward + depth * one_pass
    backward = max(products, weights, 2 * gelu) + 3 * depth * one_pass  # z; dz and x
    gradients = max(products, 2 * depth * one_pass)
    peer = depth * (6 * one_pass)  # product, activation and sum: x and y (fp32) read and written
    peer_step = peer + depth * (1 + 10) * one_pass
    words = "weights from L2, exact GELU in scalar instructions"
    return [
        Prediction("Linear + GELU, 16 layers, D 128, forward", "compiled, max-autotune", "5",
                   peer / forward, words,
                   Measured("infer_mlp128", inference.FUSED, inference.TUNED)),
        Prediction("Linear + GELU, 16 layers, D 128, step", "compiled, max-autotune", "2",
                   peer_step / (kept + backward + gradients), "z, dz and x of every layer move",
                   Measured("train_mlp128", steps.FUSED, f"{steps.NAIVE}, max-autotune")),
    ]  # fmt: skip


def mixer(top: Ceilings) -> list[Prediction]:
    """The CIFAR Mixer, 16 layers, D 128, 64 tokens, forward at batch 512."""
    batch, tokens, width, token_mlp, channel_mlp, depth = 512, 64, 128, 64, 512, 16
    weights = 2 * (tokens * token_mlp + width * channel_mlp)
    hidden = token_mlp * width + tokens * channel_mlp
    products = 2 * batch * depth * 2 * (
        tokens * token_mlp * width + tokens * width * channel_mlp
    ) / top.matmul  # fmt: skip
    whole = max(
        products,
        batch * depth * weights * BF16 / top.l2,
        batch * depth * hidden * ERF / top.scalar,
    )
    one_pass = batch * tokens * width * BF16 / top.copy
    eager = products + depth * (6 + 2 * 4 + 2 * 2) * one_pass
    return [
        Prediction("CIFAR Mixer, forward, batch 512", "eager, CUDA graphs", "3", eager / whole,
                   "each sample reads every weight from L2",
                   Measured("infer_mixer_cifar_b512", inference.FUSED, inference.GRAPHED)),
        Prediction("the same, mean depth 6 of 16", "full depth, one kernel", "2.4", 16 / 6,
                   "less the heads at the exits and the tail of the queue",
                   Measured("exit_mixer_cifar_mean6", exits.EXITING, exits.FULL)),
    ]  # fmt: skip


def kept_memory(top: Ceilings) -> list[Prediction]:
    """Tensors [N, D] that a ViT block keeps for its backward pass, ours against the residual's."""
    residual = 2 + 2 + 3 + 1 + 4 + 4  # the stream, norms, qkv, attention, z, gelu(z)
    ours = 2 + 2 + 3 + 1 + 4 + 4  # the outputs of attention and MLP in the stream's place
    again = ours - 2 - 4
    shape, peer = "ViT-B/16, activations kept", "residual, eager"
    return [
        Prediction(shape, peer, "0.65 at most", ours / residual,
                   "the stream goes, the outputs stay",
                   Measured("train_vit_base", steps.FUSED, steps.RESIDUAL, "kept")),
        Prediction(f'{shape}, checkpoint="elementwise"', peer, "0.65 at most", again / residual,
                   "norms and GELU made again: about 8 passes a layer more",
                   Measured("train_vit_base", steps.LEAN, steps.RESIDUAL, "kept")),
    ]  # fmt: skip


def predictions(top: Ceilings) -> list[Prediction]:
    return [p for count in (vit_step, linear_stack, mixer, kept_memory) for p in count(top)]


def as_table(found: list[Prediction]) -> str:
    lines = ["| workload | peer | target | predicted | from |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {p.workload} | {p.peer} | {p.target} | {p.ratio:.2f} | {p.why} |" for p in found]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    for name, value in Ceilings()._asdict().items():
        parser.add_argument(f"--{name}", type=_rate, default=value, help="per second")
    return parser


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it takes a number above 0")
    return rate


def main(argv: list[str] | None = None) -> None:
    print(as_table(predictions(Ceilings(**vars(parser().parse_args(argv))))))


if __name__ == "__main__":
    main()
