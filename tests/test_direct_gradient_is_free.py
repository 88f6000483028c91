"""The direct gradient costs no pass and no tensor of its own: counted, operator by operator.

What is counted is the backward pass of a stack at alpha = 1, against the same layers without long
connections (FeedForwardStack: only x_L reaches the output), per layer: the counts at L = 8 less
those at L = 4.

- Compiled paths (Triton, native): the difference is zero operators, zero kernel launches and zero
  tensors of N*D elements per layer, learned scales and rows included. Inside the Triton operator
  g is viewed as rows (one ``reshape``, no kernel), and a scale's [programs] shares are added by the
  launch that adds the norm's. Once per stack, not per layer: the backward of the final norm is the
  join's (``fork_backward`` on the sum) in place of PyTorch's; with learned scales the last term,
  behind which no norm follows, forms ``a g`` and ``g x``.
- PyTorch's kernels, eager: no N*D tensor, but one operator and so one pass per layer: an in-place
  add into the norm's fresh gradient, since PyTorch has no norm backward with an addend. A learned
  scale also forms ``g x`` (one N*D tensor) for its gradient. The plain loop
  ``x = f(x); y = y + a x`` pays more of both, as the last tests here count.
- PyTorch's kernels under torch.compile: Inductor fuses that add, so that no kernel is left of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter

import pytest
import torch
from counting import Count, launches_reported_to
from layers import BACKENDS, COMPILED, TRITON, Shift, device_of, make_norm
from torch import nn

from acn_kernels import FusedACNStack
from acn_kernels.blocks import FeedForwardStack, TransformerBlock

SHAPE = (2, 5, 8)
SIZE = 2 * 5 * 8
LAYERS = {
    "transformer": lambda: TransformerBlock(8, 2, 16),
    "transformer-rmsnorm": lambda: TransformerBlock(8, 2, 16, norm=nn.RMSNorm),
    "linear": lambda: Shift(8),
}
VARIANTS = {
    "plain": {},
    "learned-scales": {"scales": "learned"},
    "fixed-scales": {"scales": "fixed"},
    "first-row": {"rows": "first"},
    "learned-scales-first-row": {"scales": "learned", "rows": "first"},
}


def build(cls, depth, kind, backend, **options):
    if options.get("scales") == "fixed":
        options["scales"] = torch.rand(depth + 1)
    layers = [LAYERS[kind]() for _ in range(depth)]
    return cls(layers, nn.LayerNorm(8), backend=backend, **options).to(device_of(backend))


def backward_of(network, device, opened=False) -> Count:
    x = torch.randn(SHAPE, device=device, requires_grad=True)
    y = network(x)
    incoming = torch.randn_like(y)
    count = Count(SIZE, opened)
    reported = launches_reported_to(count) if opened else contextlib.nullcontext()
    with reported, count:
        y.backward(incoming)
    assert count.operators, "the backward pass ran under the count"
    return count


def difference(more: Counter, less: Counter) -> dict[str, int]:
    left = Counter(more)
    left.subtract(less)
    return {name: number for name, number in left.items() if number}


@functools.cache
def counted(cls, depth, kind, backend, variant, opened) -> Count:
    network = build(cls, depth, kind, backend, **VARIANTS[variant])
    return backward_of(network, device_of(backend), opened)


def per_layer(what, cls, kind, backend, variant, opened=False) -> Counter:
    """What four layers more cost in the backward pass."""
    eight, four = (counted(cls, depth, kind, backend, variant, opened) for depth in (8, 4))
    return Counter(difference(getattr(eight, what), getattr(four, what)))


def direct_gradient(what, kind, backend, variant, opened=False) -> dict[str, int]:
    """What the long connections of four layers cost in the backward pass."""
    acn = per_layer(what, FusedACNStack, kind, backend, variant, opened)
    rows = "first-row" if "rows" in VARIANTS[variant] else "plain"
    without = per_layer(what, FeedForwardStack, kind, backend, rows, opened)
    assert sum(without.values()) >= 4, "four layers do cost something"
    return difference(acn, without)


CASES = [("transformer", "plain"), ("transformer-rmsnorm", "plain")]
CASES += [("linear", variant) for variant in VARIANTS]


@pytest.mark.parametrize(("kind", "variant"), CASES)
@pytest.mark.parametrize("backend", COMPILED)
def test_no_operator_and_no_tensor_per_layer(backend, kind, variant):
    assert direct_gradient("operators", kind, backend, variant) == {}
    assert direct_gradient("tensors", kind, backend, variant) == {}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", [TRITON])
def test_no_launch_and_no_tensor_inside_the_operator(backend, variant):
    without = per_layer("launches", FeedForwardStack, "linear", backend, "plain", True)
    kernels = ("fork_backward_kernel", "add_shares_kernel")
    assert without == dict.fromkeys(kernels, 4), "one norm in each of four layers"
    assert direct_gradient("launches", "linear", backend, variant, True) == {}
    assert direct_gradient("tensors", "linear", backend, variant, True) == {}
    views = {"aten.reshape.default": 4}
    shares = {"aten.empty.memory_format": 4} if "scales" in variant else {}
    assert direct_gradient("operators", "linear", backend, variant, True) == views | shares


@pytest.mark.parametrize("depth", [4, 8])
@pytest.mark.parametrize("backend", COMPILED)
def test_cost_per_stack(backend, depth):
    """What does not grow with depth: the final norm's backward is the join's."""
    acn, without = (
        counted(cls, depth, "linear", backend, "plain", False)
        for cls in (FusedACNStack, FeedForwardStack)
    )
    ours = f"acn_{backend}.fork_backward.default"
    torchs = "aten.native_layer_norm_backward.default"
    assert difference(acn.operators, without.operators) == {ours: 1, torchs: -1}
    assert sum(acn.tensors.values()) == sum(without.tensors.values())


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_eager_torch_pays_one_add_in_place(kind):
    for variant, add in (("plain", "aten.add_.Tensor"), ("first-row", "aten.index_add_.default")):
        assert direct_gradient("tensors", kind, "torch", variant) == {}
        assert direct_gradient("operators", kind, "torch", variant) == {add: 4}


def test_eager_torch_forms_no_more_behind_an_rmsnorm():
    """Its backward is written out in either network, in other operators."""
    for variant in ("plain", "first-row"):
        assert (
            sum(direct_gradient("tensors", "transformer-rmsnorm", "torch", variant).values()) <= 0
        )


def test_eager_torch_pays_one_product_for_a_learned_scale():
    assert direct_gradient("tensors", "linear", "torch", "fixed-scales") == {}
    product = {"aten.mul.Tensor": 4}
    assert direct_gradient("tensors", "linear", "torch", "learned-scales") == product


class PlainLoop(nn.Module):
    """``for f in layers: x = f(x); y = y + a x``, the norms PyTorch's own."""

    def __init__(self, depth: int, scales: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Shift(8) for _ in range(depth)])
        self.norm = make_norm("layernorm", 8)
        self.scales = nn.Parameter(torch.ones(depth + 1)) if scales else None

    def forward(self, x):
        scales = [None] * (len(self.layers) + 1) if self.scales is None else self.scales.unbind()
        y = x if scales[0] is None else scales[0] * x
        for layer, scale in zip(self.layers, scales[1:], strict=True):
            x = layer.body(layer.norm(x))
            y = y + (x if scale is None else scale * x)
        return self.norm(y)


@pytest.mark.parametrize("depth", [4, 8])
@pytest.mark.parametrize("variant", ["plain", "learned-scales"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_less_than_the_plain_loop(backend, variant, depth):
    ours = counted(FusedACNStack, depth, "linear", backend, variant, False)
    device = device_of(backend)
    loop = backward_of(PlainLoop(depth, variant == "learned-scales").to(device), device)
    assert sum(ours.operators.values()) <= sum(loop.operators.values())
    # The loop forms g + dx anew for the output of every layer that another one follows.
    assert sum(ours.tensors.values()) <= sum(loop.tensors.values()) - depth


def inductor_backward_kernels(network) -> int:
    from torch._inductor import metrics

    torch._dynamo.reset()
    metrics.reset()
    x = torch.randn(SHAPE, device=device_of("torch"), requires_grad=True)
    y = torch.compile(network, fullgraph=True)(x)
    forward = metrics.generated_kernel_count
    y.backward(torch.randn_like(y))
    assert metrics.generated_kernel_count > forward > 0
    return metrics.generated_kernel_count - forward


def test_inductor_generates_no_kernel_for_it():
    torch.use_deterministic_algorithms(False)
    with torch._inductor.config.patch(fx_graph_cache=False):
        acn, without = (
            inductor_backward_kernels(build(cls, 2, "linear", "torch"))
            for cls in (FusedACNStack, FeedForwardStack)
        )
    assert acn <= without
