"""The ways in which processes share a training step: each gives the gradients of the whole batch.

Every strategy is a function of (rank, variant) that returns {parameter: gradient}, whole, after
two steps; :func:`one_process` is what they have to equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from layers import Shift, make_norm
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from acn_kernels import FusedACNStack
from acn_kernels.blocks import TransformerBlock

VARIANTS = {
    "plain": {},
    "learned-scales": {"scales": "learned"},
    "first-row": {"rows": "first"},
    "alpha-0.5": {"alpha": 0.5},
    "residual": {"alpha": 0.0, "granularity": "sublayer"},
    "direct-gradient-only": {"direct_gradient_only": True},
    "checkpoint": {"checkpoint": True},
    "elementwise": {"checkpoint": "elementwise"},
    "torch-backend": {"backend": "torch"},
}
Gradients = dict[str, Tensor]


def build(variant: str) -> FusedACNStack:
    torch.manual_seed(17)
    layers = [TransformerBlock(8, 2), Shift(8), TransformerBlock(8, 2)]
    return FusedACNStack(layers, make_norm("layernorm", 8), **VARIANTS[variant]).double()


def batch() -> Tensor:
    return torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(5)).double()


def share(rank: int) -> Tensor:
    return batch().chunk(dist.get_world_size())[rank]


def loss_of(y: Tensor, target: float | Tensor = 0.0) -> Tensor:
    return (y - target).square().mean()


def gradients_of(stack: nn.Module, step: Callable[[], object]) -> Gradients:
    """Of the second step: it runs on what the first left, such as the buckets that DDP rebuilt."""
    for _ in range(2):
        stack.zero_grad()
        step()
    found = {}
    for name, parameter in stack.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        found[name.replace("_checkpoint_wrapped_module.", "")] = grad.clone()
    return found


def one_process(variant: str) -> Gradients:
    stack = build(variant)
    return gradients_of(stack, lambda: loss_of(stack(batch())).backward())


def data_parallel(rank: int, variant: str) -> Gradients:
    stack, x = build(variant), share(rank)
    network = DistributedDataParallel(stack)
    return gradients_of(stack, lambda: loss_of(network(x)).backward())


def data_parallel_compiled(rank: int, variant: str) -> Gradients:
    stack, x = build(variant), share(rank)
    network = torch.compile(DistributedDataParallel(stack), backend="aot_eager")
    return gradients_of(stack, lambda: loss_of(network(x)).backward())


def data_parallel_accumulated(rank: int, variant: str) -> Gradients:
    """Sample by sample; the processes meet at the last one."""
    stack, samples = build(variant), share(rank).split(1)
    network = DistributedDataParallel(stack)

    def step():
        for i, x in enumerate(samples):
            last = i == len(samples) - 1
            with contextlib.nullcontext() if last else network.no_sync():
                (loss_of(network(x)) / len(samples)).backward()

    return gradients_of(stack, step)


def sharded(stack: FusedACNStack) -> FusedACNStack:
    for layer in stack:
        fully_shard(layer)
    return fully_shard(stack)


def fully_sharded(rank: int, variant: str) -> Gradients:
    stack, x = sharded(build(variant)), share(rank)
    return gradients_of(stack, lambda: loss_of(stack(x)).backward())


def fully_sharded_compiled(rank: int, variant: str) -> Gradients:
    """Layer by layer, as FSDP2 wants it: its hooks stay between the graphs."""
    stack, x = build(variant), share(rank)
    for layer in stack:
        layer.compile(backend="aot_eager")
    sharded(stack)
    return gradients_of(stack, lambda: loss_of(stack(x)).backward())


def fully_sharded_accumulated(rank: int, variant: str) -> Gradients:
    stack, samples = sharded(build(variant)), share(rank).split(1)

    def step():
        for i, x in enumerate(samples):
            stack.set_requires_gradient_sync(i == len(samples) - 1)
            (loss_of(stack(x)) / len(samples)).backward()

    return gradients_of(stack, step)


def fully_sharded_and_wrapped(rank: int, variant: str) -> Gradients:
    """torch's own activation checkpointing around every layer."""
    stack, x = build(variant), share(rank)
    kinds = (TransformerBlock, Shift)
    apply_activation_checkpointing(stack, check_fn=lambda module: isinstance(module, kinds))
    sharded(stack)
    return gradients_of(stack, lambda: loss_of(stack(x)).backward())


PLAN = {
    "attn.qkv": ColwiseParallel(output_layouts=Replicate()),
    "attn.proj": RowwiseParallel(input_layouts=Replicate()),
    "mlp.fc1": ColwiseParallel(),
    "mlp.fc2": RowwiseParallel(),
}


def tensor_parallel(rank: int, variant: str) -> Gradients:
    stack, mesh = build(variant), init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in stack:
        if isinstance(layer, TransformerBlock):
            parallelize_module(layer, mesh, PLAN)
            assert layer.mlp.fc1.weight.to_local().shape == (16, 8)  # half of them
    return gradients_of(stack, lambda: loss_of(stack(batch())).backward())


class Stage(nn.Module):
    """Layers[start:stop] of a pipeline; what goes to the next stage is the state (x, y)."""

    def __init__(self, stack: FusedACNStack, start: int, stop: int) -> None:
        super().__init__()
        self.stack, self.start, self.stop = stack, start, stop

    def forward(self, x: Tensor, y: Tensor | None = None):
        run = self.stack.finish if self.stop == len(self.stack) else self.stack.advance
        return run(x, y, start=self.start, stop=self.stop)


def pipeline(rank: int, variant: str) -> Gradients:
    """Two stages, three micro-batches. A stage leaves the other's layers, and its share of the
    scales' gradient, untouched: their sum is the whole."""
    stack = build(variant)
    stage = Stage(stack, *((0, 1), (1, 3))[rank])
    schedule = Schedule1F1B(PipelineStage(stage, rank, 2, torch.device("cpu")), 3, loss_fn=loss_of)
    target = torch.zeros(6, 1 if stack.rows else 3, 8).double()

    def step():
        schedule.step(batch()) if rank == 0 else schedule.step(target=target, losses=[])

    found = gradients_of(stack, step)
    for gradient in found.values():
        dist.all_reduce(gradient)
    return found


STRATEGIES = {
    "data parallel": data_parallel,
    "data parallel, accumulated": data_parallel_accumulated,
    "fully sharded": fully_sharded,
    "fully sharded, accumulated": fully_sharded_accumulated,
    "fully sharded, layers wrapped": fully_sharded_and_wrapped,
    "tensor parallel": tensor_parallel,
    "pipeline": pipeline,
}
COMPILED = {
    "data parallel, compiled": data_parallel_compiled,
    "fully sharded, compiled": fully_sharded_compiled,
}
ALL = STRATEGIES | COMPILED
CASES = [(strategy, variant) for strategy in STRATEGIES for variant in VARIANTS]
# Where torch's wrapper recomputes whole layers, ours has nothing left to do.
CASES.remove(("fully sharded, layers wrapped", "checkpoint"))
COMPILED_CASES = [
    (strategy, variant) for strategy in COMPILED for variant in ("plain", "alpha-0.5")
]


def gradients_by_case(cases: list[tuple[str, str]], rank: int) -> dict[tuple[str, str], Gradients]:
    return {(strategy, variant): ALL[strategy](rank, variant) for strategy, variant in cases}
