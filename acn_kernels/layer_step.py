"""One layer of a stack: called through its connection, checked, recomputed where asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint as checkpointed

from acn_kernels.connection import Connection, RunningSum, has_entry_norms
from acn_kernels.recompute import recomputing
from acn_kernels.validation import (
    are_counted,
    changes_in_place,
    check_checkpoint,
    check_layer_input,
    check_layer_output,
)


def step_of(checkpoint: bool | str) -> Callable:
    """The function that takes one step, whose activations are kept for the backward pass as
    ``checkpoint`` says."""
    if not check_checkpoint(checkpoint) or not torch.is_grad_enabled():
        return _run
    if checkpoint is True:
        return functools.partial(checkpointed, _run, use_reentrant=False)
    return _run_recomputing


def _run_recomputing(*call):
    with recomputing():
        return _run(*call)


def _run(x, y, kind, i, layer, wiring, scales, args, kwargs, closing):
    """(x_{i+1}, what its connection carries on, the wiring of x_{i+1})."""
    connection = kind(wiring.of_layer(i), scales, y, closing)
    out = through(i, layer, x, connection, args, kwargs)
    return out, connection.carried, connection.wiring._replace(alpha=wiring.alpha)


def through(i, layer, x, connection, args, kwargs):
    """The output of layers[i]; of the read rows alone where the layer computes no others."""
    rows = connection.wiring.rows
    if has_entry_norms(layer):
        before = changes_in_place(x)
        out = layer(x, *args, connection=connection, **kwargs)
        check_layer_input(i, layer, x, before)
        if connection.sums and connection.scales:
            raise RuntimeError(
                f"layers[{i}] ({type(layer).__name__}) lists entry_norms and left "
                f"{len(connection.scales)} of its terms out of the long sum; it takes a call of "
                "connection.enter for each"
            )
    else:
        u = connection.enter(x, None)
        if not are_counted(u) and not _is_last_reader(i, connection):
            u = u.clone()  # nothing would tell of a change in place
        before = changes_in_place(u)
        out = layer(u, *args, **kwargs)
        check_layer_input(i, layer, u, before)
    shape = x.shape
    if rows is not None and connection.wiring.rows is None:
        shape = rows.shape_of(shape)
    check_layer_output(i, layer, x, out, shape)
    return connection.leave(out) if connection.wiring.splits else out


def _is_last_reader(i: int, connection: Connection) -> bool:
    """Whether what layers[i] reads is in the sum already, nobody else's and read no more."""
    return i > 0 and isinstance(connection, RunningSum) and not connection.wiring.splits
