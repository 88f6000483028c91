"""When the extension's CUDA kernels are taken, seen without a GPU: on tensors that hold nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from acn_kernels import FusedACNStack, NormSpec, _extension, dispatch, explain, functional
from acn_kernels.blocks import TransformerBlock
from acn_kernels.functional import long_connection

OPERATIONS = ["accumulate_norm", "join_forward", "exit_head", "compact"]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: there is no memory."""


@pytest.fixture(autouse=True)
def no_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "_triton_obstacle", lambda: "Triton is not installed")


@pytest.fixture
def kernels(monkeypatch):
    limits = SimpleNamespace(cuda_version="13.0", cuda_max_width=16376, cuda_max_exit_width=8184)
    monkeypatch.setattr(_extension, "_module", limits)


def fake(*shape, dtype=torch.float32, device="cuda"):
    with FakeTensorMode():
        return torch.empty(*shape, dtype=dtype, device=device)


class Operators(TorchDispatchMode):
    """Keeps the names of the package's own operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace.startswith("acn_"):
            self.names.append(str(operator).removesuffix(".default"))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_without_triton_they_are_the_automatic_choice(kernels, operation):
    choice = dispatch.choose("auto", fake(2, 3, 8), operation)
    assert choice == ("native", "Triton is not installed; the extension has a CUDA kernel")
    assert dispatch.choose("native", fake(2, 3, 8), operation).backend == "native"


def test_triton_goes_first(kernels, monkeypatch):
    monkeypatch.setattr(dispatch, "_triton_obstacle", lambda: None)
    assert dispatch.choose("auto", fake(2, 3, 8), "join_forward").backend == "triton"


@pytest.mark.parametrize(
    ("x", "operation", "reason"),
    [
        (dict(dtype=torch.float64), "accumulate_norm", "take fp16, bf16 and fp32"),
        (dict(width=20_000), "join_forward", r"a row of 20000 does not fit .* \(16376\)"),
        (dict(width=9_000), "exit_head", r"a row of 9000 does not fit .* \(8184\)"),
        (dict(), "fork_forward", "the native kernels run on cpu"),
        (dict(), None, "the native kernels run on cpu"),
    ],
)
def test_what_they_do_not_do_goes_to_torch(kernels, x, operation, reason):
    x = fake(2, 3, x.get("width", 8), dtype=x.get("dtype", torch.float32))
    assert dispatch.choose("auto", x, operation).backend == "torch"
    with pytest.raises(RuntimeError, match=reason):
        dispatch.choose("native", x, operation)


def test_an_extension_without_them_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "_module", SimpleNamespace(cuda_version="cpu"))
    with pytest.raises(RuntimeError, match="the extension has no CUDA kernels"):
        dispatch.choose("native", fake(2, 8), "accumulate_norm")
    assert dispatch.choose("auto", fake(2, 8), "accumulate_norm").backend == "torch"
    with pytest.raises(RuntimeError, match="the extension has no CUDA kernels"):
        torch.ops.acn_cuda.compact(torch.ones(2, dtype=torch.bool), [torch.ones(2)], None)


def test_the_public_functions_call_them(kernels):
    with FakeTensorMode() as mode, torch.no_grad(), Operators() as ran:
        x, weight = torch.empty(2, 3, 8, device="cuda"), torch.empty(5, 8, device="cuda")
        h, y = functional.accumulate_norm(x, None, NormSpec("layer"))
        total = functional.join([x, h], NormSpec("rms"))
        decision = functional.exit_head(x, y, None, weight, None, 0.5)
        (kept,), count = functional.compact(decision.stays, [x], 1)
        assert mode is not None
    assert ran.names == [f"acn_cuda.{name}" for name in OPERATIONS]
    for result in (h, y, total, kept, count, *decision):
        assert result.is_cuda


def test_a_sum_to_be_differentiated_does_not_ask_for_one(monkeypatch):
    asked = []

    def choose(backend, x, operation=None):
        asked.append(operation)
        return dispatch.Choice("torch", "")

    monkeypatch.setattr(long_connection, "choose", choose)
    x = torch.ones(2, 8, requires_grad=True)
    functional.join([x, x], NormSpec("layer"))
    with torch.no_grad():
        functional.join([x, x], NormSpec("layer"))
    assert asked == [None, "join_forward"]


@torch.no_grad()
def test_norms_alone_are_none_of_them(kernels):
    """At alpha between its ends there is no step of inference, only norms."""
    stack = FusedACNStack([TransformerBlock(8, 2)], alpha=0.5)
    entry, _ = explain(stack, fake(2, 3, 8))
    assert entry.path == "torch" and entry.reason.startswith("norm only (alpha is 0.5)")
    stack.alpha = 1.0
    assert explain(stack, fake(2, 3, 8))[0].path == "native"
