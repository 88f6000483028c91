"""Every registered operator keeps what PyTorch asks of one: schema, fake tensors, autograd."""

from __future__ import annotations

import contextlib

import pytest
import torch
from layers import COMPILED, TRITON, device_of, packed

from acn_kernels import ops


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: opcheck's traces would write the poison into every allocation of their own."""


def samples(device):
    """Arguments for every operator, in the variety that changes its outputs."""
    x = packed((2, 3, 8), torch.float32, device)
    y, g, h = (torch.randn_like(x) for _ in range(3))
    first = torch.randn(2, 1, 8, device=device)
    weight, bias = torch.rand(8, device=device), torch.rand(8, device=device)
    mean, rstd = torch.zeros(6, device=device), torch.ones(6, device=device)
    nothing = torch.empty(0, device=device)
    scale = torch.tensor(0.5, device=device)
    row_map = torch.tensor([0, -1, -1], dtype=torch.int32, device=device)
    single = torch.float32
    return {
        "fork_forward": [
            (x, weight, bias, 1e-5, "layer"),
            (x, None, None, 1e-5, "layer"),
            (x, weight, None, 1e-6, "rms"),
            (x.transpose(0, 1), weight, bias, 1e-5, "layer"),
        ],
        "fork_backward": [
            (h, g, x, weight, bias, mean, rstd, scale, None, "layer"),
            (h, None, x, weight, bias, mean, rstd, scale, None, "layer"),
            (h, first, x, weight, None, mean, rstd, scale, row_map, "layer"),
            (h, None, x, None, None, mean, rstd, None, row_map, "layer"),
            (h, g, x, weight, None, nothing, rstd, None, None, "rms"),
            (h[0].expand(2, 3, 8), g, x, None, None, nothing, rstd, scale, None, "rms"),
        ],
        "join_forward": [
            ([x, g, h], None, weight, bias, 1e-5, "layer", single),
            ([x, g], torch.rand(2, device=device), weight, None, 1e-5, "rms", torch.bfloat16),
            ([x, g], None, None, None, 0.0, "none", single),
            ([x] * 40, None, None, None, 0.0, "none", single),
        ],
        "accumulate_norm": [
            (x, y, True, None, 1.0, None, weight, bias, 1e-5, "layer", single),
            (x, y, False, scale, 0.3, None, None, None, 0.0, "none", torch.bfloat16),
            (x, first.clone(), False, scale, 1.0, row_map, weight, None, 1e-5, "rms", single),
        ],
        "bias_gelu": [(x, weight), (x.transpose(0, 1), bias)],
        "bias_gelu_backward": [(g, x, bias), (h[0].expand(2, 3, 8), x, bias)],
        **linear_stack_samples(device),
        **mixer_samples(device),
        "exit_head": [
            (x, y, scale, weight, bias, 1e-5, "layer", "mean", h[0], None, 0.7),
            (x, first, None, weight, None, 1e-6, "rms", "first", h[0], bias[:3], 0.7),
            (x, None, None, None, None, 0.0, "none", "mean", h[0], bias[:3], float("inf")),
        ],
        "compact": [  # no sample leaves room at the end, which nothing would write
            (torch.tensor([True, True], device=device), [x, row_map[:2]], None),
            (torch.tensor([False, True], device=device), [x.transpose(1, 2), h[:, 0]], 1),
        ],
    }


def linear_stack_samples(device):
    x, g = torch.randn(2, 3, 16, device=device)
    weight, bias = torch.randn(2, 16, 16, device=device), torch.randn(2, 16, device=device)
    kept = torch.randn(2, 3, 16, device=device)
    scales, norm = torch.rand(3, device=device), torch.rand(16, device=device)
    nothing = (None, None, 0.0, "none")
    return {
        "linear_stack": [
            (x, weight, bias, scales, norm, norm, 1e-5, "layer", "gelu", True, True, x.dtype),
            (x, weight, None, None, *nothing, "relu", False, False, torch.bfloat16),
        ],
        "linear_layers": [
            (x, list(weight), list(bias), scales, norm, norm, 1e-5, "layer", "gelu", True, x.dtype),
            (x.mT, [weight[0, :3, :3]], [], None, *nothing, "relu", False, torch.bfloat16),
        ],
        "linear_stack_backward": [
            (g, x, weight, bias, scales, kept, "silu", True),
            (g, x, weight, None, None, kept, "relu", False),
        ],
    }


def mixer_samples(device):
    """Three layers of 3 tokens x 8, with 4 and 6 hidden units, with and without closing step."""
    x, g = torch.randn(2, 2, 3, 8, device=device)
    kept, weight = torch.randn(3, 2, 3, 8, device=device), torch.rand(8, device=device)
    shapes = [(8,), (8,), (4, 3), (4,), (3, 4), (3,), (8,), (8,), (6, 8), (6,), (8, 6), (8,)]
    shapes += [(8, 8), (8,), (8,), (8,)]
    closing = [torch.rand(3, *shape, device=device) for shape in shapes]
    plain, scales = closing[:12], torch.rand(4, device=device)
    alpha = torch.rand(1, device=device).expand(3)
    head = (torch.ones(4, dtype=torch.int32, device=device), torch.rand(5, 8, device=device), None)
    norm, rms, nothing = (weight, weight), (weight, None), (None, None)
    return {
        "mixer_stack": [
            (x, plain, None, None, *norm, 1e-5, 1e-5, "layer", True, True, torch.float32),
            (x, plain, None, scales, *nothing, 1e-5, 0.0, "none", False, True, torch.float32),
            (x, closing, None, None, *rms, 1e-5, 1e-5, "rms", True, False, torch.float16),
            (x, closing, alpha, None, *norm, 1e-5, 1e-5, "layer", True, True, torch.float32),
        ],
        "mixer_stack_backward": [
            (g, x, kept, plain, None, None, 1e-5, True),
            (g, x, kept, closing, None, scales, 1e-5, False),
            (g, x, kept[1:], plain, alpha, None, 1e-5, True),
        ],
        "mixer_exit": [
            (x, plain, None, *norm, *head, 1e-5, 1e-5, "layer", True, "mean", 1.0),
            (x, closing, scales, *nothing, *head, 1e-5, 0.0, "none", False, "first", 1.0),
        ],
    }


CASES = [
    pytest.param(namespace, name, i, marks=backend.marks, id=f"{namespace}-{name}-{i}")
    for backend in COMPILED
    for namespace in [f"acn_{backend.values[0]}"]
    for name, given in samples("cpu").items()
    if namespace in ops.OPERATORS[name].homes
    for i in range(len(given))
]


def test_every_operator_has_a_sample():
    assert samples("cpu").keys() == ops.OPERATORS.keys()


@pytest.mark.parametrize(("namespace", "name", "i"), CASES)
def test_opcheck(namespace, name, i):
    operator = getattr(getattr(torch.ops, namespace), name).default
    device = device_of(namespace.removeprefix("acn_"))
    torch.library.opcheck(operator, samples(device)[name][i])


@pytest.mark.parametrize("backend", [TRITON])
@pytest.mark.parametrize("name", ["fork_forward", "join_forward"])
def test_runs_on_the_device_of_its_input(monkeypatch, name, backend):
    """The current device, on which Triton launches, may be another."""
    found = []
    monkeypatch.setattr(
        torch.cuda, "device_of", lambda x: found.append(x) or contextlib.nullcontext()
    )
    given = samples(device_of(backend))[name][0]
    getattr(ops.compiled(backend), name)(*given)
    (x,) = found
    assert x is (given[0][0] if name == "join_forward" else given[0])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two GPUs")
def test_on_another_gpu_than_the_current_one():
    for name, given in samples("cuda:1").items():
        if "acn_triton" in ops.OPERATORS[name].homes:
            getattr(torch.ops.acn_triton, name)(*given[0])
    torch.cuda.synchronize("cuda:1")
    assert torch.cuda.current_device() == 0
