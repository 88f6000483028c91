"""mixer_exit: a stack of Mixer layers that every sample leaves as soon as the head is sure of it.

Persistent programs take samples from a queue and walk each to its own depth, so that a batch costs
its mean depth: nothing waits for the host, nothing is compacted, and no sample waits for another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import persistent_programs
from acn_kernels.kernels.mixer_layer import mixer_layer, mixer_sizes, packed
from acn_kernels.kernels.row_norm import row_norm


@triton.jit
def head_entropy(
    pooled, sample, logits_ptr, head_weight_ptr, head_bias_ptr, classes,
    D: tl.constexpr, HAS_HEAD_BIAS: tl.constexpr, CLASS_CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the sample's logits, rounded; returns the entropy of their softmax, in nats.

    A softmax over chunks of classes: with m the largest logit so far, it carries the sums of
    e = exp(logit - m) and of e (logit - m). Where a class is impossible its share is 0.
    """
    col = tl.arange(0, pooled.shape[0])
    largest = float("-inf")
    total = 0.0
    moment = 0.0
    for start in range(0, classes, CLASS_CHUNK):
        label = start + tl.arange(0, CLASS_CHUNK)
        there = label < classes
        at = head_weight_ptr + label[:, None] * D + col[None, :]
        weight = tl.load(at, mask=there[:, None] & (col < D)[None, :], other=0.0)
        # As many equal columns as a matrix product takes at least.
        columns = tl.broadcast_to(pooled[:, None], (pooled.shape[0], 16))
        logit = tl.max(tl.dot(weight, columns, input_precision=PRECISION), axis=1)
        if HAS_HEAD_BIAS:
            logit += tl.load(head_bias_ptr + label, mask=there, other=0.0).to(tl.float32)
        rounded = logit.to(logits_ptr.dtype.element_ty)
        tl.store(logits_ptr + sample.to(tl.int64) * classes + label, rounded, mask=there)
        logit = tl.where(there, rounded.to(tl.float32), float("-inf"))
        before = largest
        largest = tl.maximum(before, tl.max(logit, axis=0))
        shift = tl.where(total == 0.0, 0.0, before - largest)
        moment = (moment + total * shift) * tl.exp(shift)
        total *= tl.exp(shift)
        e = tl.exp(logit - tl.where(largest == float("-inf"), 0.0, largest))
        total += tl.sum(e, axis=0)
        moment += tl.sum(e * tl.where(e == 0.0, 0.0, logit - largest), axis=0)
    return tl.log(total) - moment / total


@triton.jit
def mixer_exit_kernel(
    x_ptr, parameters, scale_ptr, weight_ptr, bias_ptr, exits_ptr, head_weight_ptr, head_bias_ptr,
    queue_ptr, logits_ptr, depth_ptr, counts_ptr,
    samples, layers, classes, layer_eps, eps, threshold,
    INCLUDE_INPUT: tl.constexpr, HAS_SCALES: tl.constexpr, FIRST_TOKEN: tl.constexpr,
    NORM: tl.constexpr, RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_HEAD_BIAS: tl.constexpr, CLASS_CHUNK: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr, CHANNEL_HIDDEN: tl.constexpr,
    CLOSING: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, CHANNEL_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    token = tl.arange(0, TILE_T)
    col = tl.arange(0, TILE_D)
    mask = (token < T)[:, None] & (col < D)[None, :]
    at = token[:, None] * D + col[None, :]
    sample = tl.atomic_add(queue_ptr, 1)
    while sample < samples:
        x = tl.load(x_ptr + sample.to(tl.int64) * (T * D) + at, mask=mask, other=0.0)
        y = tl.zeros([TILE_T, TILE_D], dtype=tl.float32)
        if INCLUDE_INPUT:
            y += x.to(tl.float32)
            if HAS_SCALES:
                y *= tl.load(scale_ptr).to(tl.float32)
        layer = 0
        while layer < layers:
            x = mixer_layer(
                x, mask, layer, parameters, layer_eps, T, D, TOKEN_HIDDEN, CHANNEL_HIDDEN,
                TOKEN_CHUNK, CHANNEL_CHUNK, CLOSING, PRECISION,
            )  # fmt: skip
            layer += 1
            if HAS_SCALES:
                y += x.to(tl.float32) * tl.load(scale_ptr + layer).to(tl.float32)
            else:
                y += x.to(tl.float32)
            if (layer == layers) | (tl.load(exits_ptr + layer) != 0):
                # Rounded where modules of their own would round: norm, pooling, head.
                h = y
                if NORM:
                    h, _, _ = row_norm(
                        y, mask, col, D, eps, weight_ptr, bias_ptr, RMS, HAS_WEIGHT, HAS_BIAS
                    )
                h = h.to(x_ptr.dtype.element_ty).to(tl.float32)
                if FIRST_TOKEN:
                    pooled = tl.sum(tl.where((token == 0)[:, None], h, 0.0), axis=0)
                else:
                    pooled = tl.sum(tl.where(mask, h, 0.0), axis=0) / T
                pooled = pooled.to(x_ptr.dtype.element_ty)
                entropy = head_entropy(
                    pooled, sample, logits_ptr, head_weight_ptr, head_bias_ptr, classes,
                    D, HAS_HEAD_BIAS, CLASS_CHUNK, PRECISION,
                )  # fmt: skip
                # NaN is below nothing, and goes all the way.
                if (layer == layers) | (entropy < threshold):
                    tl.store(depth_ptr + sample, layer)
                    tl.atomic_add(counts_ptr + layer, 1)
                    layer = layers + 1  # out of the loop
        sample = tl.atomic_add(queue_ptr, 1)


def mixer_exit(
    x: Tensor,
    parameters: Sequence[Tensor],
    scales: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    exits: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    layer_eps: float,
    eps: float,
    kind: str,
    include_input: bool,
    pooling: str,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logits [B, C], depth [B] int64, samples that left by depth [L+1] int32) of x [B, T, D].

    ``parameters``, ``scales`` and the norm as for mixer_stack; ``exits`` [L+1] bool or integer,
    whether samples may leave at a depth (its first and last entry are not read: all leave at L);
    ``head_weight`` [C, D]; ``pooling`` "mean" or "first".
    """
    layers, classes = parameters[0].shape[0], head_weight.shape[0]
    logits = x.new_empty((len(x), classes))
    depth = x.new_empty(len(x), dtype=torch.int64)
    counts = x.new_zeros(layers + 1, dtype=torch.int32)
    if len(x):
        mixer_exit_kernel[(persistent_programs(x.device, len(x)),)](
            x.contiguous(), packed(parameters), scales, weight, bias,
            exits.to(torch.int32).contiguous(), head_weight.contiguous(), head_bias,
            torch.zeros_like(counts[:1]), logits, depth, counts,
            len(x), layers, classes, layer_eps, eps, threshold,
            INCLUDE_INPUT=include_input, HAS_SCALES=scales is not None,
            FIRST_TOKEN=pooling == "first", NORM=kind != "none", RMS=kind == "rms",
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            HAS_HEAD_BIAS=head_bias is not None, CLASS_CHUNK=16,
            **mixer_sizes(x, parameters),
        )  # fmt: skip
    return logits, depth, counts
