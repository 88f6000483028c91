"""What is kept from call to call: nothing that is no longer true, and nothing in a copy."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from conftest import DEVICE
from torch import nn
from whole_stacks import (
    DEPTH,
    WIDTH,
    check,
    in_place,
    input_of,
    linear_stack,
    mixer_stack,
    on_triton,
    parts_of,
)

from acn_kernels import FusedACNStack, _extension
from acn_kernels.blocks import MixerBlock
from acn_kernels.kept import KeptAnswer, StackedParameters
from acn_kernels.whole_stack import LinearLayers, MixerLayers, WholeStack, whole_stack_of


@pytest.fixture(
    params=[
        pytest.param((linear_stack, "triton"), marks=on_triton, id="linear-triton"),
        pytest.param(
            (linear_stack, "native"),
            marks=pytest.mark.skipif(_extension.module() is None, reason="no extension"),
            id="linear-native",
        ),
        pytest.param((mixer_stack, "triton"), marks=on_triton, id="mixer-triton"),
    ]
)
def stack(request):
    make, backend = request.param
    return make(backend=backend).to("cpu" if backend == "native" else DEVICE).eval()


@pytest.fixture
def questions(monkeypatch):
    """How often layers were asked what they are."""
    asked = []
    for kind in (LinearLayers, MixerLayers):
        original = kind.of.__func__

        def of(cls, layers, original=original):
            asked.append(cls)
            return original(cls, layers)

        monkeypatch.setattr(kind, "of", classmethod(of))
    return asked


def a_linear(stack):
    return next(module for module in stack[1].modules() if isinstance(module, nn.Linear))


def a_gelu(stack):
    return next(module for module in stack[1].modules() if isinstance(module, nn.GELU))


def test_unchanged_layers_are_asked_once(stack, questions):
    for _ in range(3):
        check(stack)
    stack.train()
    check(stack)
    with torch.enable_grad():
        assert stack.requires_grad_(False)(input_of(stack)) is not None
    assert len(questions) == 2  # training may have come between


def loaded(stack):
    stack.load_state_dict({k: torch.randn_like(v) / 4 for k, v in stack.state_dict().items()})


def assigned(stack):
    state = {k: torch.randn_like(v) / 4 for k, v in stack.state_dict().items()}
    stack.load_state_dict(state, assign=True)


def of_other_data(stack):
    a_linear(stack).weight.data = torch.randn_like(a_linear(stack).weight) / 4


def a_parameter_replaced(stack):
    linear = a_linear(stack)
    linear.weight = nn.Parameter(torch.randn_like(linear.weight) / 4)


def a_layer_replaced(stack):
    stack[1] = copy.deepcopy(stack[0])
    in_place(stack[1])


def a_layer_less(stack):
    stack.pop()


def a_layer_more(stack):
    stack.append(copy.deepcopy(stack[0]))


def layers_exchanged(stack):
    stack[0], stack[1] = stack[1], stack[0]


@pytest.mark.parametrize(
    "change",
    [
        in_place, loaded, assigned, of_other_data, a_parameter_replaced, a_layer_replaced,
        a_layer_less, a_layer_more, layers_exchanged,
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "infer"])
def test_changes_of_weights_and_layers_are_followed(stack, change, mode):
    x, before = check(stack)
    with mode():
        stack(x)
        change(stack)
        after = stack(x)
    assert not torch.allclose(after, before, rtol=1e-2, atol=1e-2)
    check(stack)


def a_hook(stack):
    a_linear(stack).register_forward_hook(lambda module, inputs, output: output * 0.5)


def a_pre_hook(stack):
    a_linear(stack).register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))


def an_approximation(stack):
    a_gelu(stack).approximate = "tanh"


def another_activation(stack):
    for name, module in stack[1].named_modules():
        if isinstance(module, nn.GELU):
            stack[1].get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = (
                nn.ReLU()
            )
            return


def a_forward_of_its_own(stack):
    own = a_linear(stack) if isinstance(stack[1], nn.Sequential) else stack[1].channel_mlp
    own.forward = lambda x, *_, **__: torch.zeros_like(x)


def a_third_module(stack):
    if isinstance(stack[1], nn.Sequential):
        stack[1].append(nn.ReLU())
    else:
        stack[1].norm1.eps = 0.3


def without_a_bias(stack):
    a_linear(stack).bias = None


def another_class(stack):
    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0.5

    a_linear(stack).__class__ = Half


@pytest.mark.parametrize(
    "change",
    [
        a_hook, a_pre_hook, an_approximation, another_activation, a_forward_of_its_own,
        a_third_module, without_a_bias, another_class,
    ],
)  # fmt: skip
def test_what_no_longer_runs_as_a_whole_is_noticed(stack, change):
    check(stack)
    change(stack)
    check(stack, whole=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha", 0.5), ("rows", "first"), ("direct_gradient_only", True), ("backend", "torch")],
)
def test_options_set_later_count(stack, name, value):
    x, _ = check(stack)
    setattr(stack, name, value)
    with torch.no_grad():
        after = stack(x)
    fresh = copy.deepcopy(stack)
    with torch.no_grad():
        torch.testing.assert_close(after, fresh(x))
    mixes = name == "alpha" and isinstance(stack[0], MixerBlock)
    assert isinstance(whole_stack_of(stack, x, DEPTH, True), WholeStack) == mixes


def test_the_norm_and_the_scales_are_read_at_every_call(stack):
    x, _ = check(stack)
    stack.norm.eps = 0.5
    check(stack)
    stack.norm = nn.LayerNorm(WIDTH, eps=2.0).to(x.device)
    check(stack)
    stack.include_input = False
    stack.scales = nn.Parameter(torch.full((DEPTH,), 2.0, device=x.device))
    with torch.no_grad():
        terms = [x]
        for layer in stack:
            terms.append(layer(terms[-1]))
        expected = stack.norm(2 * sum(terms[1:]))
        torch.testing.assert_close(stack(x), expected, rtol=1e-4, atol=1e-4)


def test_another_dtype_and_back(stack):
    dtype = torch.float64 if stack.backend == "native" else torch.float16
    check(stack)
    check(stack.to(dtype), dtype)
    # Through half precision without a call between: rounded, and maybe where they were before.
    check(stack.float())
    check(stack.half().float())


def test_one_layer_through_half_precision(stack):
    check(stack)
    pointer = a_linear(stack).weight.data_ptr()
    for _ in range(8):
        a_linear(stack).half().float()
    assert pointer  # wherever it is now
    check(stack)


def test_copies_keep_nothing(stack):
    check(stack)
    names = set(stack.state_dict())
    for twin in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert twin.kept_layers is not stack.kept_layers and parts_of(twin) is None
        assert set(twin.state_dict()) == names
        check(twin)
        with torch.no_grad():
            in_place(twin)
        check(twin)
        check(stack)
    alike = copy.copy(stack)  # shares everything
    check(alike)
    check(stack)


def test_stacks_that_share_layers(stack):
    short, other = stack.truncate(2), FusedACNStack(list(stack), stack.norm, backend=stack.backend)
    for _ in range(2):
        for each in (stack, short, other.eval()):
            check(each)
        with torch.no_grad():
            in_place(stack[0])


def test_every_depth(stack):
    x, whole = check(stack)
    with torch.no_grad():
        for depth in (1, 3, 2, 3):
            y = stack(x, depth=depth)
            torch.testing.assert_close(y, stack.truncate(depth)(x))
    torch.testing.assert_close(y, whole)


def test_gradients_after_and_before(stack):
    twin = copy.deepcopy(stack)
    for _ in range(2):
        x, _ = check(stack)
        given = [x.clone().requires_grad_() for _ in range(2)]
        stack(given[0]).square().sum().backward()
        twin.backend = "torch"
        twin(given[1]).square().sum().backward()
        torch.testing.assert_close(given[0].grad, given[1].grad, rtol=1e-3, atol=1e-3)
        for one, other in zip(stack.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
        if stack.backend == "triton":
            assert parts_of(stack) is None
        for module in (stack, twin):
            torch.optim.SGD(module.parameters(), 1e-3).step()


def test_nothing_keeps_a_stack_alive():
    """A cycle would hold the memory of the weights until the garbage collector comes by."""
    stack = linear_stack(backend="auto").eval()
    check(stack, whole=None)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(stack), weakref.ref(stack[0])
        del stack
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_an_answer_is_kept_for_its_question():
    kept, modules = KeptAnswer(), [nn.Linear(2, 2)]
    asked = []

    def question(modules):
        asked.append(len(modules))
        return len(asked)

    assert [kept.of(modules, question) for _ in range(3)] == [1, 1, 1]
    assert kept.of(modules, len) == 1 and kept.of(modules, question) == 2
    assert kept.of([*modules, nn.ReLU()], question) == 3
    kept.forget()
    assert kept.of(modules, question) == 4


def test_parameters_that_do_not_change_are_the_same_tensors():
    kinds = [[torch.randn(3) for _ in range(2)], [torch.randn(2, 2) for _ in range(2)]]
    stacked = StackedParameters(kinds)
    first = stacked.tensors(recorded=False)
    assert [x.shape for x in first] == [(2, 3), (2, 2, 2)]
    assert stacked.tensors(recorded=False) is first
    assert stacked.tensors(recorded=True) is not first
    again = stacked.tensors(recorded=False)
    assert again is not first and all(map(torch.equal, again, first))
    kinds[1][0].zero_()
    assert not stacked.tensors(recorded=False)[1][0].any()


def test_steps_of_other_optimisers_cost_nothing():
    stacked = StackedParameters([[torch.ones(3), torch.ones(3)]])
    first, other = stacked.tensors(recorded=False), nn.Parameter(torch.ones(2))
    other.grad = torch.ones(2)
    torch.optim.SGD([other], lr=0.5).step()
    assert stacked.tensors(recorded=False) is first


class Foreign(torch.optim.Optimizer):
    """In the place of one with kernels of its own, to which a weight is an address."""

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.detach().numpy()[...] *= 0.5


def test_optimisers_of_others_change_what_nobody_counts():
    parameter = nn.Parameter(torch.ones(3))
    stacked = StackedParameters([[parameter, parameter]])
    with torch.no_grad():
        assert stacked.tensors(recorded=False)[0].eq(1).all()
        Foreign([parameter], {}).step()
        assert stacked.tensors(recorded=False)[0].eq(0.5).all()


def test_fused_optimisers_change_what_nobody_counts():
    parameter = nn.Parameter(torch.ones(3))
    stacked = StackedParameters([[parameter, parameter]])
    with torch.no_grad():
        assert stacked.tensors(recorded=False)[0].eq(1).all()
        parameter.grad, version = torch.ones(3), parameter._version
        torch.optim.SGD([parameter], lr=0.5, fused=True).step()
        assert stacked.tensors(recorded=False)[0].eq(0.5).all()
    assert parameter._version == version  # or PyTorch counts them now, and need not be helped
