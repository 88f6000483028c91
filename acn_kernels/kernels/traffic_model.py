"""What each kernel must move: the least traffic, to which every count of real traffic is held.

Written from the equations, not from the kernels: a tensor of the batch's size goes over the
memory bus once for every time that it is an input or an output. :mod:`acn_kernels.kernels.traffic`
counts what interpreted launches move, :mod:`acn_kernels.kernels.compiled_traffic` what machine
code does; both must meet this table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

from acn_kernels.kernels.traffic import ObservedLaunch, tensors_in


class Movement(NamedTuple):
    """The tensor arguments of a kernel by how they must move. An argument that is not named must
    stay untouched; "name if CONDITION" holds for some launches alone (see :func:`_holds`).

    reads, writes: every element exactly once (both: read, then written).
    layer_reads, layer_writes: the same of the one layer, of the first axis, that the launch is at.
    rereads: once, and at most once more while it is still in the cache.
    marked_reads, marked_writes: the same of the samples that the launch's ``stays_ptr`` marks,
        at most ``kept`` of them.
    at_most_once: read, or written, in part: at the first layer, not at the last, or a few columns.
    shared: small and the same for all; each program reads it at most once.
    per_row: one element for each of the launch's ``rows``.
    per_layer: written once or again, at most at each of the launch's ``layers``.
    scratch: a program's own, written and read again at most at each of the launch's ``depth``
        layers, which the caches answer.
    counters: each program adds to one element at most.
    samples: the argument that tells how many samples the programs take from a queue, where they
        do; ``shared`` and ``counters`` are then for each sample.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    layer_reads: tuple[str, ...] = ()
    layer_writes: tuple[str, ...] = ()
    rereads: tuple[str, ...] = ()
    at_most_once: tuple[str, ...] = ()
    marked_reads: tuple[str, ...] = ()
    marked_writes: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    per_row: tuple[str, ...] = ()
    per_layer: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    samples: str | None = None


class Bytes(NamedTuple):
    """What an argument must move; with ``at_most`` both are bounds, else they are prescribed."""

    read: int = 0
    written: int = 0
    at_most: bool = False


_AFFINE = ("weight_ptr if HAS_WEIGHT", "bias_ptr if HAS_BIAS")
_NORM_AFFINE = ("norm_weight_ptr if HAS_NORM_WEIGHT", "norm_bias_ptr if HAS_NORM_BIAS")
_STATISTICS = ("mean_ptr if not RMS", "rstd_ptr")

MOVEMENTS: dict[str, Movement] = {
    "fork_forward_kernel": Movement(
        reads=("x_ptr",),
        writes=("h_ptr", *_STATISTICS),
        shared=_AFFINE,
    ),
    "fork_backward_kernel": Movement(
        reads=("dh_ptr", "x_ptr", "g_ptr if HAS_DIRECT", *_STATISTICS),
        # The shares of the sums over all rows are as small as the programs are few.
        writes=(
            "dx_ptr", "dweight_ptr if HAS_WEIGHT", "dbias_ptr if HAS_BIAS",
            "dscale_ptr if HAS_SCALE",
        ),
        shared=("weight_ptr if HAS_WEIGHT", "scale_ptr if HAS_SCALE"),
        per_row=("row_map_ptr if HAS_ROWS",),
    ),
    "join_kernel": Movement(
        reads=("sources", "y_ptr if CARRY"),
        # Stacks of more sources than one launch takes carry y on; the last launch alone ends in
        # out, with the norm or, where there is none, in place of y.
        writes=(
            "y_ptr if STORE_Y", "out_ptr if NORM", "out_ptr if not STORE_Y",
            "mean_ptr if NORM", "rstd_ptr if NORM",
        ),
        shared=("scale_ptr if HAS_SCALES", *_AFFINE),
    ),
    "accumulate_norm_kernel": Movement(
        reads=("x_ptr", "y_ptr if not FIRST"),
        writes=("y_ptr", "h_ptr"),
        shared=("scale_ptr if HAS_SCALE", *_AFFINE),
        per_row=("row_map_ptr if HAS_ROWS",),
    ),
    "bias_gelu_kernel": Movement(reads=("z_ptr",), writes=("h_ptr",), shared=("bias_ptr",)),
    "bias_gelu_backward_kernel": Movement(
        reads=("dh_ptr", "z_ptr"), writes=("dz_ptr", "dbias_ptr"), shared=("bias_ptr",)
    ),
    "add_shares_kernel": Movement(reads=("shares",), writes=("sums",)),
    # Of a whole stack, x and the sum move once, however deep it is.
    "linear_stack_kernel": Movement(
        reads=("x_ptr",),
        writes=(
            "out_ptr", "kept_ptr if KEEP", "y_ptr if NORM", "mean_ptr if NORM", "rstd_ptr if NORM",
        ),
        shared=("weight_ptr", "bias_ptr", "scale_ptr", *_NORM_AFFINE),
        scratch=("scratch_ptr",),
    ),
    "linear_stack_backward_kernel": Movement(
        reads=("g_ptr", "kept_ptr", "x_ptr if HAS_SCALES and INCLUDE_INPUT"),
        writes=(
            "dx_ptr", "dz_ptr", "inner_ptr if ACTIVATION != relu", "dbias_ptr if HAS_BIAS",
            "dscale_ptr if HAS_SCALES",
        ),
        shared=("weight_ptr", "scale_ptr"),
        scratch=("scratch_ptr",),
    ),
    "mixer_stack_kernel": Movement(
        reads=("x_ptr",),
        writes=(
            "out_ptr", "kept_ptr if KEEP",
            *(f"{name} if NORM and KEEP" for name in ("y_ptr", "mean_ptr", "rstd_ptr")),
        ),
        shared=("parameters", "alpha_ptr", "scale_ptr", *_AFFINE),
    ),
    "mixer_exit_kernel": Movement(
        reads=("x_ptr",),
        writes=("depth_ptr",),
        shared=(
            "parameters", "scale_ptr", *_AFFINE, "exits_ptr", "head_weight_ptr", "head_bias_ptr",
        ),
        per_layer=("logits_ptr",),  # the last that is written counts
        counters=("queue_ptr", "counts_ptr"),
        samples="samples",
    ),
    # One layer a launch. What the layer before and the one after hand on moves in ``carry``.
    # With MIXED it is the last layer alone that reads g, and it reads nothing else of the kind.
    "closing_backward_kernel": Movement(
        reads=("g_ptr if not MIXED", "out_ptr if HAS_SCALES"),
        writes=(),
        rereads=("u_ptr",),
        layer_writes=("m_ptr", "dz_ptr", "dm_ptr"),
        at_most_once=("carry_ptr", "share_ptr", "dscale_ptr", "g_ptr if MIXED"),
        shared=("parameters", "alpha_ptr", "scale_ptr"),
    ),
    "channel_backward_kernel": Movement(
        reads=(
            "u_ptr", "g_ptr if not CLOSING and not MIXED",
            "out_ptr if HAS_SCALES and not CLOSING",
        ),
        writes=("around_ptr if MIXED",),
        layer_reads=("dm_ptr if CLOSING",),
        layer_writes=("n_ptr", "hidden_ptr", "dhidden_ptr", "dm_ptr if not CLOSING", "dh_ptr"),
        at_most_once=(
            "carry_ptr if not CLOSING", "share_ptr", "dscale_ptr if not CLOSING",
            "g_ptr if not CLOSING and MIXED",
        ),
        shared=("parameters", "alpha_ptr", "scale_ptr"),
    ),
    "token_backward_kernel": Movement(
        reads=(
            "u_ptr", "g_ptr if INCLUDE_INPUT and not layer and not MIXED", "around_ptr if MIXED",
        ),
        writes=("carry_ptr if layer", "dx_ptr if not layer", "next_through_y_ptr if MIXED"),
        layer_reads=("dh_ptr", "dz_ptr if CLOSING"),
        layer_writes=("n_ptr", "hidden_ptr", "dhidden_ptr"),
        at_most_once=(
            "share_ptr", "dscale_ptr", "g_ptr if MIXED", "through_y_ptr if MIXED",
        ),
        shared=("parameters", "alpha_ptr", "scale_ptr"),
    ),
    "exit_head_kernel": Movement(
        reads=("x_ptr", "y_ptr"),
        writes=("logits_ptr", "entropy_ptr", "stays_ptr"),
        shared=("scale_ptr", *_NORM_AFFINE, "weight_ptr", "bias_ptr"),
        counters=("live_ptr",),
    ),
    "compact_kernel": Movement(
        reads=(),
        writes=(),
        marked_reads=("x_ptr",),
        marked_writes=("out_ptr",),
        shared=("stays_ptr", "upto_ptr"),
    ),
}  # fmt: skip


def must_move(
    kernel: str, arguments: Mapping[str, object], grid: tuple[int, ...]
) -> dict[str, Bytes]:
    """What each tensor argument of one launch must move, by name; absent pointers are left out.

    Raises:
        KeyError: :data:`MOVEMENTS` does not know ``kernel``.
    """
    movement = MOVEMENTS[kernel]
    held = {kind: set(_held(rules, arguments)) for kind, rules in _rules(movement)}
    turns = prod(grid) + (arguments[movement.samples] if movement.samples else 0)
    expected = {}
    for name, tensor in tensors_in(arguments).items():
        kinds = {kind for kind, names in held.items() if name.partition("[")[0] in names}
        element, size = tensor.element_size(), tensor.numel() * tensor.element_size()
        if "shared" in kinds:
            expected[name] = Bytes(size * turns, 0, at_most=True)
        elif "counters" in kinds:
            expected[name] = Bytes(element * turns, element * turns, at_most=True)
        elif "per_row" in kinds:
            expected[name] = Bytes(element * arguments["rows"], 0, at_most=True)
        elif "per_layer" in kinds:
            expected[name] = Bytes(0, size * arguments["layers"], at_most=True)
        elif "rereads" in kinds:
            expected[name] = Bytes(2 * size, 0, at_most=True)
        elif "at_most_once" in kinds:
            expected[name] = Bytes(size, size, at_most=True)
        elif kinds & {"layer_reads", "layer_writes"}:
            slice_ = size // len(tensor)
            expected[name] = Bytes(
                slice_ * ("layer_reads" in kinds), slice_ * ("layer_writes" in kinds)
            )
        elif "scratch" in kinds:
            moved = size * arguments["depth"]
            expected[name] = Bytes(moved, moved, at_most=True)
        elif kinds & {"marked_reads", "marked_writes"}:
            marked = min(int(arguments["stays_ptr"].sum()), arguments["kept"]) * (
                size // len(tensor)
            )
            expected[name] = Bytes(
                marked * ("marked_reads" in kinds), marked * ("marked_writes" in kinds)
            )
        else:
            expected[name] = Bytes(size * ("reads" in kinds), size * ("writes" in kinds))
    return expected


def violations(launch: ObservedLaunch) -> list[str]:
    """Where a counted launch moved more, less or other than it must, in words."""
    found = []
    for name, must in must_move(launch.kernel, launch.arguments, launch.grid).items():
        got = launch.traffic[name]
        for verb, moved, distinct, needed in (
            ("read", got.read, got.distinct_read, must.read),
            ("written", got.written, got.distinct_written, must.written),
        ):
            if must.at_most and moved > needed:
                found.append(f"{name}: {moved} bytes {verb}, at most {needed} needed")
            elif not must.at_most and not moved == distinct == needed:
                found.append(f"{name}: {moved} bytes {verb} ({distinct} distinct), not {needed}")
    return [f"{launch.kernel}: {problem}" for problem in found]


def _rules(movement: Movement) -> Iterator[tuple[str, tuple[str, ...]]]:
    for kind, rules in zip(movement._fields, movement, strict=True):
        if kind != "samples":
            yield kind, rules


def _held(rules: tuple[str, ...], arguments: Mapping[str, object]) -> Iterator[str]:
    """The argument names of the rules whose condition holds."""
    for rule in rules:
        name, _, condition = rule.partition(" if ")
        if _holds(condition, arguments):
            yield name


def _holds(condition: str, arguments: Mapping[str, object]) -> bool:
    """Whether compile-time arguments are so: "FLAG", "not FLAG", "NAME != value", " and "."""
    for term in condition.split(" and ") if condition else ():
        flag, differs, value = term.removeprefix("not ").partition(" != ")
        holds = arguments[flag] != value if differs else bool(arguments[flag])
        if holds == term.startswith("not "):
            return False
    return True
