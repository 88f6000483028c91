"""The machine code moves what it must: global accesses counted in the PTX of every target.

Run with TRITON_INTERPRET=0. The count is exact for the tensors of the batch's size, at widths that
are powers of two and rows that fill the tiles, in loops that turn once (whole stacks of one layer,
exits of one tile of tokens). What it leaves out (tails, selected rows, weights that several
threads load, statistics, compaction) is held by test_traffic.py.
"""

from __future__ import annotations

import os

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from row_operations import row_operations  # noqa: E402

from acn_kernels.kernels.aot import TARGETS  # noqa: E402
from acn_kernels.kernels.compiled_traffic import (  # noqa: E402
    CompiledTraffic,
    accesses,
    compiled_traffic,
)
from acn_kernels.kernels.exit_head import exit_head  # noqa: E402
from acn_kernels.kernels.launch import row_sum_tile, row_tile  # noqa: E402
from acn_kernels.kernels.linear_stack import linear_stack  # noqa: E402
from acn_kernels.kernels.linear_stack_backward import linear_stack_backward  # noqa: E402
from acn_kernels.kernels.mixer_stack import mixer_stack  # noqa: E402
from acn_kernels.kernels.recorder import Launch, launches_of  # noqa: E402
from acn_kernels.kernels.traffic import tensors_in  # noqa: E402
from acn_kernels.kernels.traffic_model import must_move  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)

EVERY_TARGET = [
    pytest.param(target, marks=[] if target == "sm_90" else pytest.mark.slow) for target in TARGETS
]
SELECTED_ROWS = ("backward, rows", "step, rows")  # predicated
OPERATIONS = [name for name in row_operations(1) if name not in SELECTED_ROWS]


def recorded(operation: str, width: int, dtype: torch.dtype) -> Launch:
    """A launch of two full tiles and as many programs: no tail, and no loop turns twice."""
    tile = row_sum_tile(width, dtype) if "backward" in operation else row_tile(width)
    calls = row_operations(width, dtype, device="meta", batch=tile.rows, tokens=2)
    launch, *_ = launches_of(*calls[operation])  # another adds shares
    return launch


def whole_stacks(dtype: torch.dtype) -> dict[str, tuple]:
    """Stacks of one layer, and an exit, on two tiles of 64 x 128, or four of 32."""

    def some(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, rows, sums = some(2, 64, 128), some(128, 128), some(2, 64, 128, dtype=torch.float32)
    norm, scales = (some(128), some(128)), some(2, dtype=torch.float32)
    shapes = [
        *((128,), (128,), (64, 64), (64,), (64, 64), (64,)),
        *((128,), (128,), (512, 128), (512,), (128, 512), (128,)),
    ]
    mixer = [some(1, *shape) for shape in shapes]
    layer, kept = (some(1, 128, 128), some(1, 128), scales), some(1, 128, 128)
    return {
        "linear_stack": (
            linear_stack, rows, *layer, *norm, 1e-5, "layer", "gelu", True, True, dtype,
        ),
        "linear_stack_backward": (
            linear_stack_backward, sums.view(128, 128), rows, *layer, kept, "silu", True,
        ),
        "mixer_stack": (
            mixer_stack, x, mixer, None, scales, *norm, 1e-5, 1e-5, "layer", True, True, dtype,
        ),
        "exit_head": (
            exit_head, x, sums, scales[0], *norm, 1e-5, "layer", "mean", some(10, 128), None, 0.7,
        ),
    }  # fmt: skip


def compared(launch: Launch, target: str) -> tuple[dict, dict]:
    """(what the code moves, what it must move) for the tensors of the batch's size."""
    arguments = launch.arguments
    tensors = tensors_in(arguments)
    size = next(iter(tensors.values())).numel()  # x, dh, g or a source
    big = {
        name
        for name, tensor in tensors.items()
        if tensor.numel() == size and not name.startswith(("parameters", "weight"))
    }
    must = must_move(launch.kernel.__name__, arguments, launch.grid)
    moved = compiled_traffic(launch, target)
    return (
        {name: tuple(moved[name]) for name in moved if name in big},
        {name: must[name][:2] for name in moved if name in big},
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [64, 1024, 4096])
@pytest.mark.parametrize("target", EVERY_TARGET)
def test_the_machine_code_moves_each_big_tensor_once(target, width, dtype):
    for operation in OPERATIONS:
        launch = recorded(operation, width, dtype)
        assert launch.grid == (2,)
        moved, must = compared(launch, target)
        assert len(must) >= 2
        assert moved == must, operation


@pytest.mark.parametrize("operation", whole_stacks(torch.bfloat16))
@pytest.mark.parametrize("target", EVERY_TARGET)
def test_whole_stacks_and_exits_move_each_big_tensor_once(target, operation):
    launch, *_ = launches_of(*whole_stacks(torch.bfloat16)[operation])
    assert launch.grid in [(2,), (4,)]
    moved, must = compared(launch, target)
    assert len(must) >= 2
    assert moved == must


@triton.jit
def sum_kernel(x_ptr, y_ptr, out_ptr, AGAIN: tl.constexpr, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    total = tl.load(x_ptr + at) + tl.load(y_ptr + at)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty))
    if AGAIN:  # the store may have changed x, for all that the compiler knows
        total += tl.load(x_ptr + at)
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("again", [False, True])
def test_a_second_read_shows(again):
    x, out = (torch.empty(3072, dtype=d, device="meta") for d in (torch.float32, torch.float16))
    arguments = {"x_ptr": x, "y_ptr": x, "out_ptr": out, "AGAIN": again, "TILE": 1024}
    moved = compiled_traffic(Launch(sum_kernel, (3,), arguments, 4, None, 3), "sm_90")
    assert moved == {
        "x_ptr": CompiledTraffic((1 + again) * x.nbytes, 0),
        "y_ptr": CompiledTraffic(x.nbytes, 0),
        "out_ptr": CompiledTraffic(0, (1 + again) * out.nbytes),
    }


def test_addresses_are_traced_through_copies_loops_and_nothing_loaded():
    ptx = """
    ld.param.b64 %rd1, [k_param_0];
    ld.param.b64 %rd2, [k_param_1+0];
    add.s64 %rd3, %rd1, %rd9;
    ld.global.b64 %rd4, [%rd3];            // an address from memory has no parameter
    mov.b64 %rd5, %rd3;
$L__BB0_1:
    @%p1 ld.global.L1::evict_last.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd5 + 16 ];
    add.s64 %rd5, %rd6, 64;
    mov.b64 %rd6, %rd5;
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x10, %r2;
    atom.global.gpu.relaxed.add.u32 %r7, [ %rd2 + 4 ], %r8;
    st.global.v8.b32 [ %rd4 + 0 ], { %r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8 };
    st.shared.b32 [ %r1 ], %r2;
    """
    assert list(accesses(ptx)) == [
        (True, False, 8, {0}),
        (True, False, 16, {0}),
        (True, False, 16, {1}),
        (True, True, 4, {1}),
        (False, True, 32, set()),
    ]
    with pytest.raises(RuntimeError, match="a bulk copy is not counted"):
        list(accesses("cp.async.bulk.tensor.2d.shared::cta.global [%r1], [%rd1, {%r2}], [%r3];"))


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="target is 'sm_70'"):
        compiled_traffic(recorded("join", 64, torch.float32), "sm_70")
