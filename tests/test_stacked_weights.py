"""Stacked weights: once, anew after every change that counts, and not kept where none may be."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import DEVICE
from torch.utils.flop_counter import FlopCounterMode
from whole_stacks import (
    check,
    in_place,
    input_of,
    linear_stack,
    mixer_stack,
    on_triton,
    parts_of,
)

pytestmark = on_triton


@pytest.fixture(params=[linear_stack, mixer_stack])
def stack(request):
    return request.param(backend="triton").to(DEVICE).eval()


def test_they_are_stacked_once(stack):
    check(stack)
    first = parts_of(stack)
    check(stack)
    assert parts_of(stack) is first
    with torch.no_grad():
        stack[2].load_state_dict(stack[1].state_dict())
    check(stack)
    assert parts_of(stack) is not first


def test_they_are_let_go(stack):
    for change in (stack.train, stack.eval, stack.float):
        check(stack)
        assert parts_of(stack) is not None
        change()
        assert stack.kept_layers._answer is None


def test_the_same_mode_again_changes_nothing(stack):
    check(stack)
    first = parts_of(stack)
    stack.eval()
    check(stack)
    assert parts_of(stack) is first


def test_writes_that_nobody_counts_wait_for_the_mode(stack):
    """The limit that the documentation states, and its way out."""
    x, before = check(stack)
    for parameter in stack[1].parameters():
        parameter.data.mul_(1.5)
    stack.train().eval()
    with torch.no_grad():
        assert not torch.allclose(stack(x), before, rtol=1e-2, atol=1e-2)
    check(stack)


def test_who_watches_operations_sees_them_all(stack):
    check(stack)
    with FlopCounterMode(display=False), torch.no_grad():
        stack(input_of(stack))
    check(stack)


def test_functional_call_and_vmap(stack):
    x, before = check(stack)
    other = {k: torch.randn_like(v) / 4 for k, v in stack.state_dict().items()}
    with torch.no_grad():
        y = torch.func.functional_call(stack, other, (x,))
    twin = copy.deepcopy(stack)
    twin.load_state_dict(other)
    with torch.no_grad():
        torch.testing.assert_close(y, twin(x))
        torch.testing.assert_close(stack(x), before)


def test_compiled_code_follows_the_weights(stack):
    x, _ = check(stack)
    compiled = torch.compile(stack, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), stack(x))
        in_place(stack)
        torch.testing.assert_close(compiled(x), stack(x))
    check(stack)


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        stack = linear_stack(backend="triton").to(DEVICE).eval()
        x = input_of(stack)
        before = stack(x)
        assert parts_of(stack) is None
        in_place(stack)
        assert not torch.allclose(stack(x), before, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_a_graph_stacks_for_itself(stack):
    x, _ = check(stack)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(2):
                stack(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = stack(x)
        assert parts_of(stack) is None
        in_place(stack)
        graph.replay()
        torch.testing.assert_close(y, stack(x))
