"""Passes per layer of a pre-norm transformer block: one pass is one [N, D] tensor read or written.

Counted on the Triton path with everything that is not a matrix product or attention itself:

| | forward | backward |
| --- | --- | --- |
| the two norms, their backwards | 4 | 6 |
| the long sum and the direct gradient | 1 | 1 |
| GELU of the four times wider hidden layer | 8 | 12 |
| gradients of the biases of qkv, proj, fc2 (fc1's comes with GELU's) | | 3 + 1 + 1 |
| together | 13 | 24 |
| pooled rows | 12 | 23 |

The copies that PyTorch makes of q, k and v's gradients on their way back to one matrix come on top
of this, up to 6 passes; parameters, which are small beside N, are not counted.
"""

from __future__ import annotations

import os

import pytest
import torch
from layers import TRITON
from torch import nn

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("counted where Triton is interpreted", allow_module_level=True)

from passes import passes

from acn_kernels import FusedACNStack
from acn_kernels.blocks import TransformerBlock

SHAPE = (3, 40, 16)  # larger than any weight


def passes_of(layers: int, backend: str, rows: str | None) -> list[dict[str, float]]:
    """What forward and backward of a whole stack move, by name."""
    x = torch.randn(SHAPE, requires_grad=True)
    blocks = [TransformerBlock(SHAPE[-1], heads=2) for _ in range(layers)]
    stack = FusedACNStack(blocks, nn.LayerNorm(SHAPE[-1]), rows=rows, backend=backend)
    outputs = []
    forward = passes(lambda: outputs.append(stack(x)), x.numel())
    gradient = torch.randn_like(outputs[0])
    return [forward, passes(lambda: outputs[0].backward(gradient), x.numel())]


def passes_per_layer(backend: str, rows: str | None) -> list[dict[str, float]]:
    """The same for one layer: what a deeper stack moves more."""
    two, three = passes_of(2, backend, rows), passes_of(3, backend, rows)
    return [
        {name: more[name] - fewer[name] for name in more if more[name] != fewer[name]}
        for fewer, more in zip(two, three, strict=True)
    ]


def without_copies_around_attention(backward: dict[str, float]) -> dict[str, float]:
    copies = ("stack", "cat", "clone")
    assert sum(backward.get(name, 0) for name in copies) <= 6
    return {name: moved for name, moved in backward.items() if name not in copies}


@pytest.mark.parametrize("backend", [TRITON])
def test_every_token_in_the_sum(backend):
    forward, backward = passes_per_layer(backend, None)
    assert forward == {"kernels": 13.0}
    assert without_copies_around_attention(backward) == {"kernels": 19.0, "sum": 5.0}


@pytest.mark.parametrize("backend", [TRITON])
def test_pooled_rows_cost_next_to_nothing(backend):
    forward, backward = passes_per_layer(backend, "first")
    assert forward == {"kernels": 12.0}
    assert without_copies_around_attention(backward) == {"kernels": 18.0, "sum": 5.0}


def test_the_plain_path_moves_more():
    """LayerNorm's backward counts as one operator here, on a GPU it is two that read twice."""
    forward, backward = passes_per_layer("torch", None)
    assert forward == {"native_layer_norm": 4.0, "gelu": 8.0, "add_": 3.0}
    assert without_copies_around_attention(backward) == {
        "native_layer_norm_backward": 6.0, "gelu_backward": 12.0, "sum": 9.0, "add_": 3.0,
    }  # fmt: skip
