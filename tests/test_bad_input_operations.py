"""The operations underneath check their arguments as the stack does, whichever path runs."""

from __future__ import annotations

import pytest
import torch
from layers import BACKENDS, device_of, packed
from torch import nn

from acn_kernels import FusedACNStack, NormSpec, functional
from acn_kernels.blocks import TransformerBlock
from acn_kernels.functional import Term
from acn_kernels.rows import Rows

SPEC = NormSpec("layer", torch.ones(7), torch.zeros(7))
HEAD = torch.ones(4, 7)
OPERATIONS = {
    "x-list": (lambda b: functional.fork([1.0], SPEC, backend=b), TypeError, "x is a list"),
    "x-integers": (
        lambda b: functional.norm(torch.ones(2, 7, dtype=torch.int32), SPEC, b),
        TypeError,
        "x has dtype torch.int32",
    ),
    "spec-module": (
        lambda b: functional.fork(torch.ones(2, 7), nn.LayerNorm(7), backend=b),
        TypeError,
        "spec is a LayerNorm",
    ),
    "spec-kind": (
        lambda b: functional.norm(torch.ones(2, 7), NormSpec("batch"), b),
        ValueError,
        "spec.kind is 'batch'",
    ),
    "spec-width": (
        lambda b: functional.norm(torch.ones(2, 5), SPEC, b),
        ValueError,
        r"spec.weight has shape \(7,\); rows of 5",
    ),
    "spec-list": (
        lambda b: functional.norm(torch.ones(2, 7), NormSpec("layer", [1.0] * 7), b),
        TypeError,
        "spec.weight is a list; it takes a tensor",
    ),
    "spec-device": (
        lambda b: functional.norm(
            torch.ones(2, 7, device=device_of(b)), NormSpec("rms", torch.ones(7, device="meta")), b
        ),
        ValueError,
        "spec.weight is on meta",
    ),
    "scale-float": (
        lambda b: functional.fork(torch.ones(2, 7), SPEC, 0.5, backend=b),
        TypeError,
        "scale is a float",
    ),
    "scale-1d": (
        lambda b: functional.tap(torch.ones(2, 7), torch.ones(1)),
        ValueError,
        r"scale is torch.float32 of shape \(1,\)",
    ),
    "scale-device": (
        lambda b: functional.fork(
            torch.ones(2, 7), SPEC, torch.ones((), device="meta"), backend=b
        ),
        ValueError,
        "scale is on meta, x on cpu",
    ),
    "tap-scale-device": (
        lambda b: functional.tap(torch.ones(2, 7), torch.ones((), device="meta")),
        ValueError,
        "scale is on meta",
    ),
    "step-scale-device": (
        lambda b: functional.accumulate_norm(
            torch.ones(2, 7), scale=torch.ones((), device="meta"), backend=b
        ),
        ValueError,
        "scale is on meta",
    ),
    "no-terms": (lambda b: functional.join([], backend=b), ValueError, "terms is empty"),
    "term-shape": (
        lambda b: functional.join([torch.ones(2, 7), torch.ones(1, 7)], backend=b),
        ValueError,
        r"terms\[1\] has shape \(1, 7\)",
    ),
    "term-dtype": (
        lambda b: functional.join([torch.ones(2, 7), torch.ones(2, 7).half()], backend=b),
        TypeError,
        r"terms\[1\] has dtype torch.float16",
    ),
    "term-device": (
        lambda b: functional.join([torch.ones(2, 7), torch.ones(2, 7, device="meta")], backend=b),
        ValueError,
        r"terms\[1\] is on meta",
    ),
    "term-scale": (
        lambda b: functional.join([Term(torch.ones(2, 7), 2.0)], backend=b),
        TypeError,
        "scale is a float",
    ),
    "term-scale-device": (
        lambda b: functional.join(
            [Term(torch.ones(2, 7), torch.ones((), device="meta"))], backend=b
        ),
        ValueError,
        "scale is on meta",
    ),
    "sum-device": (
        lambda b: functional.accumulate_norm(
            torch.ones(2, 7), torch.ones(2, 7, device="meta"), backend=b
        ),
        ValueError,
        "y is on meta, x on cpu",
    ),
    "sum-dtype": (
        lambda b: functional.accumulate_norm(torch.ones(2, 7), torch.ones(2, 7).half(), backend=b),
        ValueError,
        "y is torch.float16",
    ),
    "sum-shape": (
        lambda b: functional.accumulate_norm(torch.ones(2, 7), torch.ones(7), backend=b),
        ValueError,
        r"shape \(7,\)",
    ),
    "sum-strided": (
        lambda b: functional.accumulate_norm(torch.ones(7, 7), torch.ones(7, 7).t(), backend=b),
        ValueError,
        "packed",
    ),
    "step-alpha": (
        lambda b: functional.accumulate_norm(torch.ones(2, 7), alpha=1.2, backend=b),
        ValueError,
        "alpha is 1.2",
    ),
    "step-rows-alpha": (
        lambda b: functional.accumulate_norm(
            torch.ones(2, 7), alpha=0.5, backend=b,
            rows=Rows("first").resolve(2, torch.device("cpu")),
        ),
        ValueError,
        "a partial sum takes alpha 1",
    ),
    "rows-tensor": (
        lambda b: functional.fork(torch.ones(2, 3, 7), SPEC, rows=torch.tensor([0, 1]), backend=b),
        TypeError,
        "rows is a Tensor; it takes an acn_kernels.rows.RowSelection",
    ),
    "rows-tap": (
        lambda b: functional.tap(torch.ones(2, 3, 7), rows=torch.tensor([0, 1, 2])),
        TypeError,
        "rows is a Tensor",
    ),
    "rows-of-others": (
        lambda b: functional.fork(
            torch.ones(2, 5, 7), SPEC, backend=b,
            rows=Rows([0, 2]).resolve(3, torch.device("cpu")),
        ),
        ValueError,
        r"rows were selected of 3 tokens; x has shape \(2, 5, 7\)",
    ),
    "step-rows-of-others": (
        lambda b: functional.accumulate_norm(
            torch.ones(2, 5, 7), rows=Rows([0, 2]).resolve(3, torch.device("cpu")), backend=b
        ),
        ValueError,
        "rows were selected of 3 tokens",
    ),
    "rows-device": (
        lambda b: functional.accumulate_norm(
            torch.ones(2, 3, 7), rows=Rows([0, 2]).resolve(3, torch.device("meta")), backend=b
        ),
        ValueError,
        "rows are on meta, x on cpu",
    ),
    "sum-list": (
        lambda b: functional.accumulate_norm(torch.ones(2, 7), [1.0], backend=b),
        TypeError,
        "y is a list; it takes a tensor",
    ),
    "exit-sum-list": (
        lambda b: functional.exit_head(
            torch.ones(2, 3, 7), [1.0], None, HEAD, None, 0.5, backend=b
        ),
        TypeError,
        "y is a list",
    ),
    "exit-scale-device": (
        lambda b: functional.exit_head(
            torch.ones(2, 3, 7), None, None, HEAD, None, 0.5, torch.ones((), device="meta"),
            backend=b,
        ),
        ValueError,
        "scale is on meta, x on cpu",
    ),
    "exit-weight-none": (
        lambda b: functional.exit_head(torch.ones(2, 3, 7), None, None, None, None, 0.5, backend=b),
        TypeError,
        "weight is a NoneType",
    ),
    "exit-bias-list": (
        lambda b: functional.exit_head(
            torch.ones(2, 3, 7), None, None, HEAD, [0.0] * 4, 0.5, backend=b
        ),
        TypeError,
        "bias is a list",
    ),
    "layers-weight": (
        lambda b: functional.linear_stack(torch.ones(2, 7), [[1.0]], None, "relu"),
        TypeError,
        r"weight\[0\] is a list",
    ),
    "layers-scales": (
        lambda b: functional.linear_stack(
            torch.ones(2, 7), torch.ones(1, 7, 7), None, "relu", scales=[1.0, 1.0]
        ),
        TypeError,
        "scales is a list",
    ),
    "layers-scales-device": (
        lambda b: functional.linear_stack(
            torch.ones(2, 7), torch.ones(1, 7, 7), None, "relu", scales=torch.ones(2, device="meta")
        ),
        ValueError,
        "scales is on meta, x on cpu",
    ),
    "backend": (
        lambda b: functional.norm(torch.ones(2, 7), SPEC, "mps"),
        ValueError,
        "backend is 'mps'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_operations(backend, case):
    call, error, message = OPERATIONS[case]
    with pytest.raises(error, match=message):
        call(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_width_the_blocks_do_not_take(backend):
    stack = FusedACNStack([TransformerBlock(8, 2)], backend=backend).to(device_of(backend))
    with pytest.raises(ValueError, match=r"spec.weight"):
        stack(packed((2, 3, 6), torch.float32, device_of(backend)))
