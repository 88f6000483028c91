"""The stack as an nn.ModuleList: list methods, copies, pickles, state dicts, hooks, devices."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from layers import NATIVE, Opaque, Shift, device_of, make_norm
from tolerances import assert_close
from torch import nn
from torch.utils.checkpoint import checkpoint

from acn_kernels import FusedACNStack
from acn_kernels.blocks import TransformerBlock


def make_stack(depth=3, **options):
    return FusedACNStack([Shift(7) for _ in range(depth)], make_norm("layernorm", 7), **options)


def x_like(batch=2):
    return torch.randn(batch, 3, 7)


def assert_same_function(one, other):
    x = x_like()
    assert torch.equal(one(x), other(x))


def test_keys_are_those_of_a_module_list():
    blocks = [TransformerBlock(8, 2) for _ in range(3)]
    listed = nn.ModuleList(copy.deepcopy(blocks))
    for container in (FusedACNStack(blocks), FusedACNStack(nn.Sequential(*blocks))):
        assert list(container.state_dict()) == list(listed.state_dict())
        container.load_state_dict(listed.state_dict(), strict=True)
    assert isinstance(FusedACNStack(blocks), nn.ModuleList)


def test_parameters_are_added_for_learned_scales_and_the_norm_only():
    layers = [Shift(7), Shift(7)]
    own = {f"{i}.{name}" for i in range(2) for name, _ in layers[i].named_parameters()}
    names = lambda stack: {name for name, _ in stack.named_parameters()}  # noqa: E731
    assert names(FusedACNStack(layers)) == own
    assert names(FusedACNStack(layers, scales=[1.0, 2.0, 3.0])) == own
    assert names(FusedACNStack(layers, nn.LayerNorm(7), scales="learned")) == own | {
        "norm.weight", "norm.bias", "scales",
    }  # fmt: skip
    assert "scales" not in FusedACNStack(layers, scales=[1.0, 2.0, 3.0]).state_dict()


def test_len_iteration_and_membership_speak_of_layers_alone():
    layers = [Shift(7) for _ in range(3)]
    stack = FusedACNStack(layers, nn.LayerNorm(7))
    assert len(stack) == 3 and list(stack) == layers
    assert stack[0] is layers[0] and stack[-1] is layers[2]
    assert layers[1] in stack and stack.norm not in list(stack)
    with pytest.raises(IndexError):
        stack[3]


@pytest.mark.parametrize(
    "part", [slice(0, 2), slice(1, None), slice(None, None, 2), slice(-1, None)], ids=str
)
def test_slices_are_stacks(part):
    stack = make_stack(scales="learned")
    with torch.no_grad():
        stack.scales.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    sliced = stack[part]
    kept = list(range(3))[part]
    assert type(sliced) is FusedACNStack and [stack[k] for k in kept] == list(sliced)
    assert sliced.scales.tolist() == [0.5, *(stack.scales[k + 1].item() for k in kept)]
    assert sliced.norm is stack.norm


EDITS = {
    "append": (lambda s, new: s.append(new), lambda old, new: [*old, new]),
    "insert": (lambda s, new: s.insert(1, new), lambda old, new: [old[0], new, *old[1:]]),
    "extend": (lambda s, new: s.extend([new]), lambda old, new: [*old, new]),
    "set": (lambda s, new: s.__setitem__(1, new), lambda old, new: [old[0], new, old[2]]),
    "set-last": (lambda s, new: s.__setitem__(-1, new), lambda old, new: [*old[:2], new]),
    "delete": (lambda s, new: s.__delitem__(0), lambda old, new: old[1:]),
    "delete-slice": (lambda s, new: s.__delitem__(slice(1, 3)), lambda old, new: old[:1]),
    "pop": (lambda s, new: s.pop(), lambda old, new: old[:-1]),
    "pop-first": (lambda s, new: s.pop(0), lambda old, new: old[1:]),
    "iadd": (lambda s, new: s.__iadd__([new]), lambda old, new: [*old, new]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits(edit):
    """A stack edited is the stack built from the edited list, its keys in order."""
    change, expected = EDITS[edit]
    old, new = [Shift(7) for _ in range(3)], Shift(7)
    stack = FusedACNStack(old, make_norm("layernorm", 7))
    change(stack, new)
    built = FusedACNStack(expected(old, new), stack.norm)
    assert list(stack) == list(built)
    assert list(stack.state_dict()) == list(built.state_dict())
    assert_same_function(stack, built)


def test_pop_returns_the_layer():
    stack = make_stack()
    last = stack[2]
    assert stack.pop() is last and len(stack) == 2


def test_an_edit_that_leaves_the_scales_behind_is_an_error():
    stack = make_stack(scales=[1.0, 2.0, 3.0, 4.0])
    stack.append(Shift(7))
    with pytest.raises(ValueError, match=r"scales has shape \(4,\).*5 terms"):
        stack(x_like())


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda stack: pickle.loads(pickle.dumps(stack)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"scales": "learned"}, {"scales": [1.0, 0.5, 2.0, 3.0], "rows": "last"}, {"alpha": 0.4}],
    ids=["plain", "learned", "fixed-rows", "alpha"],
)
def test_copies(how, options):
    stack = make_stack(**options)
    stack(x_like())  # what it keeps from call to call must not break or be shared
    twin = COPIES[how](stack)
    assert type(twin) is FusedACNStack and len(twin) == 3
    assert_same_function(stack, twin)
    before = stack[0].weight.clone()
    with torch.no_grad():
        twin[0].weight.add_(1)
    assert torch.equal(stack[0].weight, before)
    assert twin.truncate(2).alpha == stack.alpha


def test_saved_state_loads():
    stack, other = make_stack(scales="learned"), make_stack(scales="learned")
    file = io.BytesIO()
    torch.save(stack.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same_function(stack, other)


@pytest.mark.parametrize("scales", [None, "learned"], ids=str)
def test_functional_call(scales):
    stack, other, x = make_stack(scales=scales), make_stack(scales=scales), x_like()
    parameters = dict(other.named_parameters())
    y = torch.func.functional_call(stack, parameters, (x,))
    assert torch.equal(y, other(x))
    gradients = torch.autograd.grad(y.sum(), list(parameters.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("layer", [Shift, Opaque])
def test_hooks_on_layers_see_tensors(layer, alpha, gradients):
    stack = FusedACNStack([layer(7) for _ in range(3)], make_norm("layernorm", 7), alpha=alpha)
    x, seen = x_like().requires_grad_(gradients), []
    for module in stack:
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        module.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.set_grad_enabled(gradients):
        y = stack(x)
    assert len(seen) == 6
    assert all(isinstance(t, torch.Tensor) and t.shape == x.shape for t in seen)
    assert y.shape == x.shape


def test_backward_hooks_on_layers_fire():
    stack, fired = make_stack(), []
    for i, module in enumerate(stack):
        module.register_full_backward_hook(lambda *_, i=i: fired.append(i))
    stack(x_like().requires_grad_()).sum().backward()
    assert fired == [2, 1, 0]


class Wrapped(nn.Module):
    """A layer of one block or more, whose first owns the entry norms."""

    def __init__(self, call, count=1):
        super().__init__()
        self.blocks = nn.ModuleList(Shift(7) for _ in range(count))
        self.call = call

    @property
    def entry_norms(self):
        return self.blocks[0].entry_norms

    def forward(self, x, connection=None):
        return self.call(self.blocks, x, connection)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_block_inside_a_layer_may_be_recomputed_and_reentrant_recomputing_is_refused(alpha):
    def calling(reentrant):
        def call(blocks, x, connection):
            def function(x):
                return blocks[0](x, connection=connection)

            return checkpoint(function, x, use_reentrant=reentrant)

        return call

    layers = [Wrapped(calling(False)) for _ in range(3)]
    stack, x = FusedACNStack(layers, alpha=alpha), x_like().requires_grad_()
    plain = FusedACNStack([layer.blocks[0] for layer in layers], alpha=alpha)
    expected = torch.autograd.grad(plain(x).square().sum(), [x, *plain.parameters()])
    found = torch.autograd.grad(stack(x).square().sum(), [x, *stack.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    for layer in layers:
        layer.call = calling(True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        stack(x).square().sum().backward()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_one_connection_for_two_blocks_is_refused(alpha):
    def call(blocks, x, connection):
        return blocks[1](blocks[0](x, connection=connection), connection=connection)

    stack = FusedACNStack([Wrapped(call, 2) for _ in range(2)], alpha=alpha)
    with pytest.raises(RuntimeError, match="began its connection twice"):
        stack(x_like())


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_layer_enters_once_for_every_term(alpha, gradients):
    def forgets(blocks, x, connection):
        return blocks[0](x)

    def repeats(blocks, x, connection):
        return blocks[0].body(connection.enter(blocks[0](x, connection=connection), None))

    for call, message in (
        (forgets, r"layers\[1\] \(Wrapped\) lists entry_norms and left 1 of its terms out"),
        (repeats, "entered its connection too often"),
    ):
        stack = FusedACNStack([Shift(7), Wrapped(call)], alpha=alpha)
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match=message):
            stack(x_like())


def test_hooks_on_norms_are_honoured():
    """A norm with a hook is called as a module; a hook that changes its output changes y."""
    stack, x = make_stack().double(), x_like().double()
    plain = stack(x)
    seen = []
    handle = stack[1].norm.register_forward_hook(lambda module, args, out: seen.append(out))
    assert_close(stack(x), plain)
    assert len(seen) == 1
    handle.remove()
    handle = stack.norm.register_forward_hook(lambda module, args, out: out + 1)
    assert_close(stack(x), plain + 1)
    with torch.no_grad():
        assert_close(stack(x), plain + 1)
    handle.remove()
    assert_close(stack(x), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scales", [None, "learned", "fixed"], ids=str)
def test_to_dtype(scales, dtype):
    given = [1.0, 0.5, 2.0, 0.25] if scales == "fixed" else scales
    stack = make_stack(scales=given).to(dtype)
    y = stack(x_like().to(dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad.dtype == dtype for p in stack.parameters())


def test_fixed_scales_move_with_the_stack():
    stack = make_stack(scales=[1.0, 0.5, 2.0, 0.25]).to("meta")
    assert stack.scales.device.type == "meta"
    assert stack(torch.empty(2, 3, 7, device="meta")).shape == (2, 3, 7)


def test_args_and_kwargs_reach_every_layer():
    stack = FusedACNStack([TransformerBlock(8, 2) for _ in range(3)], nn.LayerNorm(8)).double()
    x = torch.randn(2, 5, 8).double()
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    causal = stack(x, is_causal=True)
    assert_close(stack(x, mask), causal)
    assert_close(stack.forward_intermediates(x, mask)[-1], causal)
    changed = torch.cat([x[:, :3], torch.randn(2, 2, 8).double()], 1)
    assert_close(stack(changed, is_causal=True)[:, :3], causal[:, :3])


def test_training_mode_reaches_layers_and_norm():
    stack = make_stack().eval()
    assert not any(module.training for module in stack.modules())


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_repr_shows_layers_and_norm(layers):
    stack = FusedACNStack([nn.Linear(7, 7) for _ in range(layers)], nn.LayerNorm(7))
    linear = nn.Linear(7, 7)
    shown = {0: "", 1: f"  (0): {linear}\n", 3: f"  (0-2): 3 x {linear}\n"}[layers]
    assert repr(stack) == f"FusedACNStack(\n{shown}  (norm): {nn.LayerNorm(7)}\n)"
    stack.norm = None
    assert repr(stack) == repr(nn.ModuleList(stack)).replace("ModuleList", "FusedACNStack")


@pytest.mark.parametrize("backend", [NATIVE])
def test_inference_mode(backend):
    stack, x = make_stack(backend=backend).to(device_of(backend)), x_like()
    with torch.inference_mode():
        y = stack(x)
    assert y.is_inference()
    assert_close(y, stack(x).detach().double(), roundings=3)
