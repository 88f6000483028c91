"""Weights and biases of norms, scales and flags with gaps between their numbers, or expanded."""

from __future__ import annotations

import pytest
import torch
from layers import BACKENDS, TRITON, device_of, packed
from test_mixer_exit import head_of, mixer

from acn_kernels import NormSpec, functional
from acn_kernels.rows import Rows

D = 16


def gaps(vector):
    """The same numbers, two apart, with others between."""
    wide = vector.new_full((2 * len(vector),), 7.0 if vector.is_floating_point() else 1)
    wide[::2] = vector
    return wide[::2]


def repeated(vector):
    return vector[:1].expand(len(vector))


def fork(x, weight, bias, scales, stays, backend):
    x, weight = x.clone().requires_grad_(), weight.detach().requires_grad_()
    bias = bias.detach().requires_grad_()
    rows = Rows([0, 2]).resolve(x.shape[-2], x.device)
    h, term = functional.fork(x, NormSpec("layer", weight, bias), scales[0], rows, backend)
    loss = (h * h).sum() + (term.x * 3).sum()
    return [h, *torch.autograd.grad(loss, [x, weight, bias])]


def join(x, weight, bias, scales, stays, backend):
    terms = [functional.Term(x, scale) for scale in scales[:2]]
    return [functional.join(terms, NormSpec("rms", weight), backend)]


def accumulate_norm(x, weight, bias, scales, stays, backend):
    spec = NormSpec("layer", weight, bias)
    return functional.accumulate_norm(x, None, spec, scales[0], backend=backend)


def bias_gelu(x, weight, bias, scales, stays, backend):
    z, bias = x.clone().requires_grad_(), bias.detach().requires_grad_()
    h = functional.bias_gelu(z, bias, backend)
    return [h, *torch.autograd.grad(h.sum(), [z, bias])]


def exit_head(x, weight, bias, scales, stays, backend):
    head = torch.ones(D, D, device=x.device).tril()
    spec = NormSpec("layer", weight, bias)
    return functional.exit_head(x, None, spec, head, bias, 1.0, backend=backend)[:2]


def compact(x, weight, bias, scales, stays, backend):
    outs, count = functional.compact(stays, [x.transpose(0, 1)], None, backend)
    return [outs[0][: int(count)]]


def linear_stack(x, weight, bias, scales, stays, backend):
    scales, weights = scales.detach().requires_grad_(), torch.ones(2, D, D, device=x.device).tril()
    spec = NormSpec("layer", weight, bias)
    y = functional.linear_stack(x, weights, None, "relu", spec, scales[:3], backend=backend)
    return [y, *torch.autograd.grad((y * y).sum(), [scales])]


def mixer_stack(x, weight, bias, scales, stays, backend):
    torch.manual_seed(0)
    scales = scales.detach().requires_grad_()
    y = functional.mixer_stack(
        x, mixer(2, x.shape[1], D, (5, 7)), NormSpec("layer", weight, bias), scales[:3]
    )
    return [y, *torch.autograd.grad((y * y).sum(), [scales])]


def mixer_exit(x, weight, bias, scales, stays, backend):
    torch.manual_seed(0)
    parameters, head = mixer(2, x.shape[1], D, (5, 7)), head_of(D, D, x.dtype)
    with torch.no_grad():
        return functional.mixer_exit(
            x,
            parameters,
            stays[:3],
            2.0,
            head.weight,
            bias,
            NormSpec("layer", weight, bias),
            scales[:3],
        )[:2]


ON_ALL = [fork, join, accumulate_norm, bias_gelu, exit_head, compact]
WHOLE = [linear_stack, mixer_stack, mixer_exit]


@pytest.mark.parametrize("layout", [gaps, repeated])
@pytest.mark.parametrize(
    ("operation", "backend"),
    [
        pytest.param(
            operation,
            *backend.values,
            marks=backend.marks,
            id=f"{operation.__name__}-{backend.values[0]}",
        )
        for operation in [*ON_ALL, *WHOLE]
        for backend in (BACKENDS if operation in ON_ALL else [TRITON])
    ],
)
def test_the_same_as_packed(operation, backend, layout):
    device = device_of(backend)
    x = packed((2, 4, D), torch.float32, device)
    vectors = [layout(0.5 + torch.rand(D, device=device)) for _ in range(3)]
    stays = gaps(torch.tensor([True, False, True, False], device=device))
    truth = operation(x, *(v.contiguous() for v in vectors), stays.contiguous(), backend)
    found = operation(x, *vectors, stays, backend)
    for one, true in zip(found, truth, strict=True):
        torch.testing.assert_close(one, true, rtol=1e-6, atol=1e-6, equal_nan=False)
