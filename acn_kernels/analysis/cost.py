"""What a network costs, cut at any depth: parameters, FLOPs, memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from acn_kernels.stack import FusedACNStack
from acn_kernels.text_table import text_table


@dataclass(frozen=True)
class Costs:
    """By depth, in the order of ``depths``: all int64 tensors [len(depths)] on the CPU.

    flops: of one forward pass of one sample, two for every multiplication with an addition, in
    matrix products, convolutions and attention; what is done element by element is not counted.
    bytes: of parameters and buffers as they are stored.
    """

    depths: Sequence[int]
    parameters: Tensor
    flops: Tensor
    bytes: Tensor

    def __str__(self) -> str:
        rows = {
            "parameters": [f"{n:,}" for n in self.parameters.tolist()],
            "MFLOPs": [f"{n / 1e6:,.4g}" for n in self.flops.tolist()],
            "MB": [f"{n / 1e6:,.4g}" for n in self.bytes.tolist()],
        }
        return text_table("cost by depth", [str(k) for k in self.depths], rows)

    def draw(self, path) -> None:
        """Writes a PNG file: each cost as a share of the deepest network's. Needs matplotlib."""
        from acn_kernels.plotting import lines

        shares = {
            name: values.double() / values[-1]
            for name, values in (
                ("parameters", self.parameters),
                ("FLOPs", self.flops),
                ("memory", self.bytes),
            )
        }
        lines(shares, self.depths, path, "depth", "share of the full network")


def costs(model: nn.Module, inputs: Tensor, depths: Sequence[int] | None = None) -> Costs:
    """What ``model``, cut to each of ``depths`` (None: every one of its FusedACNStack), costs.

    Nothing is computed: the passes run on tensors without data.

    Args:
        model: one of :mod:`acn_kernels.models`, or any module with ``truncate(k)``.
        inputs: [1, ...], one sample.

    Raises:
        TypeError: the model cannot be cut.
        ValueError: inputs holds another number of samples.
    """
    if not callable(getattr(model, "truncate", None)):
        raise TypeError(f"model is a {type(model).__name__}; it takes one with truncate(k)")
    if len(inputs) != 1:
        raise ValueError(f"inputs holds {len(inputs)} samples; it takes one")
    if depths is None:
        stack = next((m for m in model.modules() if isinstance(m, FusedACNStack)), None)
        depths = range(1) if stack is None else range(not stack.include_input, len(stack) + 1)
    cut = [model.truncate(k) for k in depths]
    return Costs(
        depths,
        torch.tensor([sum(p.numel() for p in short.parameters()) for short in cut]),
        torch.tensor([count_flops(short, inputs) for short in cut]),
        torch.tensor([sum(t.nbytes for t in _stored(short)) for short in cut]),
    )


@torch.no_grad()
def count_flops(model: nn.Module, inputs: Tensor) -> int:
    """FLOPs of one forward pass of ``model`` on ``inputs``."""
    from torch.utils.flop_counter import FlopCounterMode  # brings Triton in

    twin = copy.deepcopy(model).to("meta").eval()
    for module in twin.modules():
        if isinstance(module, FusedACNStack):
            module.backend = "torch"  # the counter knows torch's own operations
    # The counter knows no fused attention of the CPU; the plain one is products that it counts.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        twin(inputs.to("meta"))
    return counter.get_total_flops()


def _stored(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
