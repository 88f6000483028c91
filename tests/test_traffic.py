"""Every kernel moves what it must and nothing twice: counted on interpreted launches."""

from __future__ import annotations

import importlib
import math
import os
import pkgutil

import pytest
import torch
from layers import expanded, packed, padded

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("counted where Triton is interpreted", allow_module_level=True)

from passes import passes  # noqa: E402
from row_operations import row_operations  # noqa: E402
from triton.runtime.errors import InterpreterError  # noqa: E402

from acn_kernels import kernels  # noqa: E402
from acn_kernels.kernels.compaction import compact  # noqa: E402
from acn_kernels.kernels.exit_head import exit_head  # noqa: E402
from acn_kernels.kernels.fork import fork_backward  # noqa: E402
from acn_kernels.kernels.join import join_forward  # noqa: E402
from acn_kernels.kernels.launch import MAX_SOURCES  # noqa: E402
from acn_kernels.kernels.linear_stack import linear_stack  # noqa: E402
from acn_kernels.kernels.linear_stack_backward import linear_stack_backward  # noqa: E402
from acn_kernels.kernels.mixer_exit import mixer_exit  # noqa: E402
from acn_kernels.kernels.mixer_stack import mixer_stack  # noqa: E402
from acn_kernels.kernels.mixer_stack_backward import mixer_stack_backward  # noqa: E402
from acn_kernels.kernels.traffic import Traffic, observed  # noqa: E402
from acn_kernels.kernels.traffic_model import (  # noqa: E402
    MOVEMENTS,
    Movement,
    must_move,
    violations,
)

OPERATIONS = list(row_operations(1))


def size_of_x(width: int) -> int:
    return row_operations(width)["forward, layer"][1].numel()


def launches_of(call: tuple) -> list:
    function, *args = call
    with observed() as launches:
        function(*args)
    return launches


@pytest.mark.parametrize("width", [1, 7, 64, 300])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_row_kernel_moves_what_it_must(operation, width):
    launches = launches_of(row_operations(width)[operation])
    assert len(launches) == 1 + ("backward" in operation)  # which adds its shares
    assert launches[0].grid[0] > 1
    assert [problem for launch in launches for problem in violations(launch)] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_moves_half(dtype):
    for call in row_operations(48, dtype).values():
        launch, *others = launches_of(call)
        assert [problem for each in (launch, *others) for problem in violations(each)] == []
        x = launch.traffic.get("x_ptr", launch.traffic.get("sources[0]"))
        assert x.read == 2 * size_of_x(48)


@pytest.mark.parametrize(
    "sources",
    [MAX_SOURCES, MAX_SOURCES + 1, 2 * MAX_SOURCES + 3],
)
def test_deep_sums_carry_on_in_fp32(sources):
    xs = [packed((3, 7), torch.float32, "cpu") for _ in range(sources)]
    launches = launches_of((join_forward, xs, None, None, None, 0.0, "none", torch.float32))
    assert len(launches) == -(-sources // MAX_SOURCES)
    assert [problem for launch in launches for problem in violations(launch)] == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_launchers_copy_nothing_besides(operation):
    """What is left to PyTorch is small: the last sum over programs. Rows with gaps between them
    are read where they lie, except by join, whose sources come without strides."""
    for layout in [packed] if operation.startswith("join") else [packed, padded]:
        function, *args = row_operations(24, layout=layout)[operation]
        moved = passes(lambda: function(*args), size_of_x(24))  # noqa: B023
        assert moved.pop("kernels") > 0
        assert not +moved


def test_an_expanded_gradient_is_packed_once():
    dh, g, x, *rest = row_operations(24)["backward, layer"][1:]
    g = expanded(x.shape, x.dtype, "cpu")
    moved = passes(lambda: fork_backward(dh, g, x, *rest), x.numel())
    assert moved.pop("kernels") == 4
    assert sum(moved.values()) == 2


def test_the_bytes_that_the_design_speaks_of():
    """Passes over [N, D]: fork 2, its backward 4 (3 for the last norm), join one a source."""

    def moved(operation: str) -> float:
        function, *args = row_operations(64)[operation]
        return passes(lambda: function(*args), size_of_x(64))["kernels"]

    expected = {
        "forward, layer": 2, "backward, layer": 4, "backward, no direct": 3, "backward, rows": 3,
        "join": 4 + 2, "join, no norm": 3 + 1, "step": 4, "step, first": 3, "step, rows": 2,
    }  # fmt: skip
    assert {operation: moved(operation) for operation in expected} == expected


@pytest.mark.parametrize(
    "operation", ["mean", "mean, scale, rms", "first", "output alone", "1000 classes"]
)
def test_an_exit_reads_its_samples_once(operation):
    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape)

    x, y, head = some(3, 9, 300), some(3, 9, 300), (some(5, 300), some(5), 0.7)
    norm = (some(300), some(300), 1e-5, "layer")
    call = {
        "mean": (x, y, None, *norm, "mean", *head),
        "mean, scale, rms": (x, y, some(), some(300), None, 1e-6, "rms", "mean", *head),
        "first": (x, some(3, 1, 300), None, *norm, "first", *head),
        "output alone": (x, None, None, None, None, 0.0, "none", "mean", *head),
        "1000 classes": (x, y, None, *norm, "mean", some(1000, 300), None, 0.7),
    }[operation]
    (launch,) = launches_of((exit_head, *call))
    assert violations(launch) == []
    assert launch.traffic["live_ptr"] == Traffic(12, 12, 4, 4)


@pytest.mark.parametrize("kept", [None, 3])
def test_compaction_moves_the_staying_samples_alone(kept):
    stays = torch.tensor([False, True, True, False, True, False, True])
    for x in (torch.randn(7, 5, 3000), torch.arange(7)):
        (launch,) = launches_of((compact, stays, [x], kept))
        assert violations(launch) == []
        moved = (kept or 4) * x[0].nbytes
        assert launch.traffic["x_ptr"] == Traffic(moved, 0, moved, 0)


LINEAR_STACKS = {  # activation, norm, scales, include_input, keep
    "gelu": ("gelu", "layer", False, True, True),
    "relu, scales": ("relu", "rms", True, True, True),
    "no input, no norm": ("silu", "none", True, False, True),
    "inference": ("gelu_tanh", "layer", False, True, False),
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("width", [20, 200])
@pytest.mark.parametrize("stack", LINEAR_STACKS)
def test_a_whole_linear_stack_moves_x_and_y_once(stack, width):
    activation, kind, scaled, include_input, keep = LINEAR_STACKS[stack]
    x = torch.randn(150, width)
    weight, bias = 0.1 * torch.randn(3, width, width), torch.randn(3, width)
    scales = torch.rand(4) if scaled else None
    norm = (None, None) if kind == "none" else (torch.rand(width), torch.rand(width))
    with observed() as launches:
        *_, kept = linear_stack(
            x, weight, bias, scales, *norm, 1e-5, kind, activation, include_input, keep, x.dtype
        )
        if keep:
            g = torch.randn_like(x)
            linear_stack_backward(g, x, weight, bias, scales, kept, activation, include_input)
    assert len(launches) == 1 + 2 * keep  # the sweep, and what adds its shares
    assert [problem for launch in launches for problem in violations(launch)] == []


def mixer(closing: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """x [3, 5, 12] and the parameters of two layers with hidden widths of 7 and 70."""
    shapes = [
        *((12,), (12,), (7, 5), (7,), (5, 7), (5,)),
        *((12,), (12,), (70, 12), (70,), (12, 70), (12,)),
        *((12, 12), (12,), (12,), (12,)),
    ]
    shapes = shapes if closing else shapes[:12]
    return torch.randn(3, 5, 12), [torch.randn(2, *shape) for shape in shapes]


# (alpha, scales) of two layers
WIRINGS = {
    "acn": (None, None),
    "scaled": (None, torch.rand(3)),
    "mixed": (torch.tensor([0.3, 0.8]), None),
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("closing", [False, True])
def test_a_whole_mixer_stack_moves_x_and_y_once(closing, wiring, keep):
    x, parameters = mixer(closing)
    norm = (torch.rand(12), torch.rand(12), 1e-5, 1e-5, "layer")
    (launch,) = launches_of(
        (mixer_stack, x, parameters, *WIRINGS[wiring], *norm, True, keep, x.dtype)
    )
    assert violations(launch) == []


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("closing", [False, True])
def test_the_backward_sweep_of_a_mixer_reads_each_layer_once(closing, wiring):
    x, parameters = mixer(closing)
    kept = torch.randn(1 if wiring == "mixed" else 2, 3, 5, 12)
    call = (mixer_stack_backward, torch.randn_like(x), x, kept, parameters)
    launches = launches_of((*call, *WIRINGS[wiring], 1e-5, True))
    assert len(launches) == 2 * (2 + closing)
    assert [problem for launch in launches for problem in violations(launch)] == []


@pytest.mark.parametrize("threshold", [0.0, math.inf])
def test_a_mixer_with_exits_reads_its_samples_once(threshold):
    x, parameters = mixer(closing=False)
    exits, head = torch.tensor([0, 1, 1], dtype=torch.int32), (torch.randn(20, 12), torch.randn(20))
    norm = (torch.rand(12), torch.rand(12))
    call = (mixer_exit, x, parameters, torch.rand(3), *norm, exits, *head, 1e-5, 1e-5, "layer")
    (launch,) = launches_of((*call, True, "mean", threshold))
    assert violations(launch) == []


def test_every_kernel_has_a_model():
    names = set()
    for module in pkgutil.iter_modules(kernels.__path__, kernels.__name__ + "."):
        if not module.ispkg:
            for name, value in vars(importlib.import_module(module.name)).items():
                if name.endswith("_kernel") and hasattr(value, "arg_names"):
                    names.add(name)
    assert names == MOVEMENTS.keys()


# A deliberately wasteful kernel, and the counter itself.

TILE = 8


@triton.jit
def double_kernel(
    x_ptr, out_ptr, count,
    READS: tl.constexpr, WRITES: tl.constexpr, SHORT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.zeros([TILE], dtype=tl.float32)
    for _ in tl.static_range(READS):
        x += tl.load(x_ptr + at, mask=at < count, other=0.0)
    for _ in tl.static_range(WRITES):
        tl.store(out_ptr + at, x, mask=at < count - SHORT)


def run_double(reads: int = 1, writes: int = 1, short: int = 0):
    x = torch.randn(19)
    with observed() as launches:
        double_kernel[(triton.cdiv(19, TILE),)](
            x, torch.empty_like(x), 19, READS=reads, WRITES=writes, SHORT=short, TILE=TILE
        )
    return launches[0]


@pytest.mark.parametrize(
    ("waste", "problem"),
    [
        ({}, None),
        ({"reads": 2}, "x_ptr: 152 bytes read (76 distinct), not 76"),
        ({"reads": 0}, "x_ptr: 0 bytes read (0 distinct), not 76"),
        ({"writes": 2}, "out_ptr: 152 bytes written (76 distinct), not 76"),
        ({"short": 3}, "out_ptr: 64 bytes written (64 distinct), not 76"),
    ],
)
def test_a_wasteful_kernel_is_caught(monkeypatch, waste, problem):
    monkeypatch.setitem(MOVEMENTS, "double_kernel", Movement(("x_ptr",), ("out_ptr",)))
    expected = [] if problem is None else [f"double_kernel: {problem}"]
    assert violations(run_double(**waste)) == expected


def test_an_argument_outside_the_model_must_stay_untouched(monkeypatch):
    monkeypatch.setitem(MOVEMENTS, "double_kernel", Movement(("x_ptr",), ()))
    assert violations(run_double()) == [
        "double_kernel: out_ptr: 76 bytes written (76 distinct), not 0"
    ]
    monkeypatch.setitem(MOVEMENTS, "double_kernel", Movement((), ("out_ptr",), shared=("x_ptr",)))
    assert violations(run_double()) == []
    assert violations(run_double(reads=4)) == [
        "double_kernel: x_ptr: 304 bytes read, at most 228 needed"
    ]


@triton.jit
def access_kernel(sources, total_ptr, flags_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    block = tl.make_block_ptr(sources[0], (3,), (1,), (0,), (SIZE,), (0,))
    x = tl.load(block, boundary_check=(0,))
    x += tl.load(sources[1] + 2 * at, mask=at < 2, other=0.0)
    tl.atomic_add(total_ptr + at * 0, x, mask=at < 3)
    tl.atomic_cas(flags_ptr, 0, 1)


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr")
def test_every_kind_of_access_is_counted_where_it_belongs():
    """Tuples, block pointers, masks, atomics; two views that interleave in one buffer."""
    buffer, total = torch.randn(8), torch.zeros(1)
    flags = torch.zeros(2, dtype=torch.int32)
    with observed() as launches:
        access_kernel[(2,)]((torch.randn(3), buffer[1::2]), total, flags, SIZE=4)
    (launch,) = launches
    assert (launch.kernel, launch.grid) == ("access_kernel", (2,))
    assert launch.traffic == {
        "sources[0]": Traffic(2 * 12, 0, 12, 0),
        "sources[1]": Traffic(2 * 8, 0, 8, 0),
        "total_ptr": Traffic(2 * 12, 2 * 12, 4, 4),
        "flags_ptr": Traffic(2 * 4, 2 * 4, 4, 4),
    }
    assert flags.tolist() == [1, 0]


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr")
def test_shared_memory_counts_for_the_first_argument():
    x = torch.randn(4)
    with observed() as launches:
        access_kernel[(1,)]((x, x), torch.zeros(1), torch.zeros(1, dtype=torch.int32), SIZE=4)
    assert launches[0].traffic["sources[0]"] == Traffic(12 + 8, 0, 12, 0)
    assert launches[0].traffic["sources[1]"] == Traffic(0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr")
def test_an_access_outside_every_argument_fails():
    """Here the gap between the elements of a strided view."""
    gaps, flags = torch.randn(8)[::2], torch.zeros(1, dtype=torch.int32)
    with (
        pytest.raises(InterpreterError, match="1 unmasked accesses lie in no argument"),
        observed(),
    ):
        access_kernel[(1,)]((gaps, torch.randn(8)), torch.zeros(1), flags, SIZE=4)
    x = torch.randn(3)
    double_kernel[(1,)](x, x.clone(), 3, READS=1, WRITES=1, SHORT=0, TILE=8)  # unobserved again


def test_the_model_refuses_what_it_does_not_know():
    with pytest.raises(KeyError, match="access_kernel"):
        must_move("access_kernel", {}, (1,))
