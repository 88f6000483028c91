"""explain says which path each part takes, and it is the path that runs."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICE
from counting import Count
from layers import BACKENDS, COMPILED, TRITON, Opaque, Shift, device_of, make_norm, packed
from torch import nn

import acn_kernels as acn
from acn_kernels import FusedACNStack, _extension, dispatch, functional
from acn_kernels.blocks import DenseFormerStack, FeedForwardStack, HybridStack


def make_stack(layers=(Shift, Shift), **options):
    return FusedACNStack([layer(7) for layer in layers], nn.LayerNorm(7), **options)


def operators_run(stack, x):
    count = Count(1)
    with count:
        stack(x)
    return {name.split(".")[0] for name in count.operators if name.startswith("acn_")}


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_names_the_path_that_runs(backend, gradients):
    stack = make_stack(backend=backend).to(device_of(backend))
    x = packed((2, 7), torch.float32, device_of(backend))
    with torch.set_grad_enabled(gradients):
        parts = acn.explain(stack, x)
        ran = operators_run(stack, x)
    assert [part.name for part in parts] == ["layers[0]", "layers[1]", "sum"]
    assert {part.path for part in parts} == {backend}
    assert ran == (set() if backend == "torch" else {f"acn_{backend}"})
    assert all("asked for by name" in part.reason for part in parts)
    step = "fork" if gradients else "accumulate_norm"
    assert parts[0].reason.startswith(step)
    assert parts[-1].reason.startswith("join" if gradients else "running sum")


def test_auto_on_a_cpu_prefers_the_extension_and_never_fails(monkeypatch):
    x = torch.randn(2, 7)
    if _extension.module() is not None:
        parts = acn.explain(make_stack(), x)
        assert {part.path for part in parts} == {"native"}
    monkeypatch.setattr(_extension, "_module", None)
    monkeypatch.setattr(_extension, "_state", "not built here")
    parts = acn.explain(make_stack(), x)
    assert {part.path for part in parts} == {"torch"}
    assert all("not built here" in part.reason for part in parts)


def test_layers_that_cannot_be_fused_are_named_with_the_reason():
    class OwnNorm(nn.LayerNorm):
        pass

    stack = make_stack((Opaque, Shift, Shift), backend="torch")
    stack[1].norm = OwnNorm(7)
    stack[2].norm.register_forward_hook(lambda *_: None)
    opaque, own, hooked, _ = acn.explain(stack, torch.randn(2, 7))
    assert opaque.path == own.path == hooked.path == "module"
    assert "Opaque lists no entry_norms" in opaque.reason
    assert "OwnNorm" in own.reason and "hooks" in hooked.reason


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_below_1_only_the_norms_are_fused(alpha):
    parts = acn.explain(make_stack(alpha=alpha, backend="torch"), torch.randn(2, 7))
    assert parts[0].reason.startswith(f"norm only (alpha is {alpha})")
    assert parts[-1].path == "torch" and "the sum runs along" in parts[-1].reason


@pytest.mark.parametrize("backend", COMPILED)
def test_the_end_of_a_running_sum(backend):
    """Where no norm of a known kind closes it, PyTorch adds the last term."""
    x = packed((2, 7), torch.float32, device_of(backend))
    for norm in (None, nn.Identity()):
        stack = FusedACNStack([Opaque(7)], norm, backend=backend).to(x.device)
        with torch.no_grad():
            *_, total = acn.explain(stack, x)
            assert operators_run(stack, x) == set()
        assert total.path == "torch" and "no norm to fuse" in total.reason


@pytest.mark.parametrize("backend", COMPILED)
def test_layers_whose_input_is_no_term_of_its_own(backend):
    x = packed((2, 7), torch.float32, device_of(backend))
    detached = make_stack(direct_gradient_only=True, backend=backend).to(x.device)
    without = make_stack(include_input=False, backend=backend).to(x.device)
    assert acn.explain(detached, x)[1].reason.startswith("norm only (direct gradient only)")
    first, second, _ = acn.explain(without, x)
    assert first.reason.startswith("norm only (the input is no term of the sum)")
    assert second.reason.startswith("fork")
    with torch.no_grad():  # no gradient is left to be kept apart
        assert acn.explain(detached, x)[1].reason.startswith("accumulate_norm")


def test_direct_gradient_only_and_foreign_final_norm():
    stack = FusedACNStack([Shift(7)], nn.Identity(), direct_gradient_only=True, backend="torch")
    layer, total = acn.explain(stack, torch.randn(2, 7))
    assert "direct gradient only" in layer.reason
    assert "Identity runs as the module it is" in total.reason


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    "options", [{}, {"direct_gradient_only": True}, {"include_input": False}, {"rows": "first"}],
    ids=str,
)  # fmt: skip
def test_names_the_operation_that_each_layer_enters_by(options, gradients, monkeypatch):
    stack, x, entered = make_stack(**options), torch.randn(2, 3, 7), []

    def noted(name, operation):
        return lambda *args: entered.append(name) or operation(*args)

    for name in ("fork", "norm", "accumulate_norm"):
        monkeypatch.setattr(functional, name, noted(name, getattr(functional, name)))
    with torch.set_grad_enabled(gradients):
        parts = acn.explain(stack, x)
        stack(x)
    assert [part.reason.split(",")[0].split()[0] for part in parts[:2]] == entered[:2]


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("layer", [Shift, lambda width: nn.Sequential(nn.Linear(7, 7), nn.ReLU())])
@pytest.mark.parametrize("kind", [FeedForwardStack, DenseFormerStack])
def test_a_network_without_a_sum(kind, layer, gradients):
    stack = kind([layer(7) for _ in range(2)], nn.LayerNorm(7))
    with torch.set_grad_enabled(gradients):
        first, _, output = acn.explain(stack, torch.randn(2, 7))
    assert output == ("output", "torch", f"a {kind.__name__} sums no outputs")
    assert (output.reason if layer is Shift else "no entry_norms") in first.reason


def test_alpha_has_no_meaning_in_a_hybrid():
    layer, total = acn.explain(HybridStack([Shift(7)], alpha=0.5), torch.randn(2, 7))
    assert layer.reason.startswith("fork") and total.reason.startswith("join")


def test_prints_as_an_aligned_table():
    lines = str(acn.explain(make_stack(backend="torch"), torch.randn(2, 7))).splitlines()
    assert len(lines) == 3
    assert len({line.index("torch") for line in lines}) == 1


def test_no_layers():
    (total,) = acn.explain(FusedACNStack([], make_norm("rmsnorm", 7)), torch.randn(2, 7))
    assert total.name == "sum"


@pytest.mark.parametrize("backend", [TRITON])
def test_errors(backend):
    with pytest.raises(TypeError, match="stack is a Linear"):
        acn.explain(nn.Linear(7, 7), torch.randn(2, 7))
    with pytest.raises(TypeError, match="x is a list"):
        acn.explain(make_stack(), [1.0])
    with pytest.raises(RuntimeError, match="fp16, bf16 and fp32"):
        acn.explain(make_stack(backend=backend), packed((2, 7), torch.float64, DEVICE))


def test_availability_gives_a_reason_for_every_path():
    found = dispatch.availability()
    assert set(found) == {"triton", "native", "torch"}
    assert found["torch"][0]
    assert all(isinstance(reason, str) and reason for _, reason in found.values())


@pytest.mark.parametrize("backend", [TRITON])
def test_rows_wider_than_a_program_take_another_path(backend):
    launch = pytest.importorskip("acn_kernels.kernels.launch")
    wide = torch.randn(1, launch.MAX_WIDTH + 1, device=DEVICE)
    with pytest.raises(RuntimeError, match="does not fit a program's registers"):
        FusedACNStack([nn.Identity()], backend=backend)(wide)
    assert torch.equal(FusedACNStack([nn.Identity()])(wide), 2 * wide)
