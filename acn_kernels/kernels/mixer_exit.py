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

from acn_kernels.kernels.launch import packed, persistent_programs
from acn_kernels.kernels.mixer_layer import all_packed, mixer_layer, mixer_sizes
from acn_kernels.kernels.row_norm import row_norm

_CLASS_CHUNK = 16  # as many as a matrix product takes at least


@triton.jit
def head_part(
    weight_ptr, bias_ptr, start, classes, col,
    D: tl.constexpr, HAS_BIAS: tl.constexpr, CLASS_CHUNK: tl.constexpr,
):  # fmt: skip
    """(weight [CLASS_CHUNK, columns], bias [CLASS_CHUNK]) of the classes from ``start`` on; zero
    for those that there are not."""
    label = start + tl.arange(0, CLASS_CHUNK)
    there = label < classes
    at = weight_ptr + label[:, None] * D + col[None, :]
    weight = tl.load(at, mask=there[:, None] & (col < D)[None, :], other=0.0)
    bias = tl.zeros([CLASS_CHUNK], dtype=weight.dtype)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + label, mask=there, other=0.0)
    return weight, bias


@triton.jit
def head_logits(
    h, weight, bias, start, sample, logits_ptr, classes,
    T: tl.constexpr, FIRST_TOKEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sample's logits [1, CLASS_CHUNK] of the classes from ``start`` on, rounded as they are
    written, in fp32; -inf for classes that there are not.

    The head comes before the pooling, which it lets pass: a product of all tokens costs less than
    a sum along the columns of h.
    """
    token = tl.arange(0, h.shape[0])
    label = start + tl.arange(0, weight.shape[0])
    there = label < classes
    z = tl.dot(h, weight.T, input_precision=PRECISION)
    if FIRST_TOKEN:
        z = tl.sum(tl.where((token == 0)[:, None], z, 0.0), axis=0)
    else:
        z = tl.sum(tl.where((token < T)[:, None], z, 0.0), axis=0) / T
    rounded = (z + bias.to(tl.float32)).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + sample.to(tl.int64) * classes + label, rounded, mask=there)
    return tl.where(there, rounded.to(tl.float32), float("-inf"))[None, :]


@triton.jit
def softmax_sums(logit, largest):
    """(sum of e, sum of e t) along the second axis, with t = logit - largest and e = exp(t); where
    a class is impossible its share is 0."""
    t = logit - tl.where(largest == float("-inf"), 0.0, largest)[:, None]
    e = tl.exp(t)
    return tl.sum(e, axis=1), tl.sum(e * tl.where(e == 0.0, 0.0, t), axis=1)


@triton.jit
def exit_entropy(
    h, weight, bias, sample, logits_ptr, head_weight_ptr, head_bias_ptr, classes,
    T: tl.constexpr, D: tl.constexpr, FIRST_TOKEN: tl.constexpr, HAS_HEAD_BIAS: tl.constexpr,
    CLASS_CHUNK: tl.constexpr, ONE_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the sample's logits, rounded; returns the entropy of their softmax, in nats.

    ``weight`` and ``bias`` are the head's first part. Further parts make the sums those to a
    higher largest logit. All is kept as a row of numbers: of two sums after a product, Triton does
    not compile one of a vector for sm_100.
    """
    logit = head_logits(h, weight, bias, 0, sample, logits_ptr, classes, T, FIRST_TOKEN, PRECISION)
    largest = tl.max(logit, axis=1)
    total, moment = softmax_sums(logit, largest)
    if not ONE_CHUNK:
        col = tl.arange(0, h.shape[1])
        for start in range(CLASS_CHUNK, classes, CLASS_CHUNK):
            weight, bias = head_part(
                head_weight_ptr, head_bias_ptr, start, classes, col, D, HAS_HEAD_BIAS, CLASS_CHUNK
            )
            logit = head_logits(
                h, weight, bias, start, sample, logits_ptr, classes, T, FIRST_TOKEN, PRECISION
            )
            before = largest
            largest = tl.maximum(before, tl.max(logit, axis=1))
            shift = tl.where(total == 0.0, 0.0, before - largest)
            more, more_moment = softmax_sums(logit, largest)
            moment = (moment + total * shift) * tl.exp(shift) + more_moment
            total = total * tl.exp(shift) + more
    return (tl.log(total) - moment / total).item()


@triton.jit
def mixer_exit_kernel(
    x_ptr, parameters, scale_ptr, weight_ptr, bias_ptr, exits_ptr, head_weight_ptr, head_bias_ptr,
    queue_ptr, logits_ptr, depth_ptr, counts_ptr,
    samples, layers, classes, layer_eps, eps, threshold,
    INCLUDE_INPUT: tl.constexpr, HAS_SCALES: tl.constexpr, FIRST_TOKEN: tl.constexpr,
    NORM: tl.constexpr, RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_HEAD_BIAS: tl.constexpr, CLASS_CHUNK: tl.constexpr, ONE_CHUNK: tl.constexpr,
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
            layer += 1
            # Asked for before the layer, which hides the wait.
            stops = tl.load(exits_ptr + layer)
            x = mixer_layer(
                x, mask, layer - 1, parameters, 0.0, layer_eps, T, D, TOKEN_HIDDEN, CHANNEL_HIDDEN,
                TOKEN_CHUNK, CHANNEL_CHUNK, CLOSING, False, PRECISION,
            )  # fmt: skip
            if HAS_SCALES:
                y += x.to(tl.float32) * tl.load(scale_ptr + layer).to(tl.float32)
            else:
                y += x.to(tl.float32)
            if (layer == layers) | (stops != 0):
                # What memory has to bring is asked for before there is work to hide it behind.
                weight, bias = head_part(
                    head_weight_ptr, head_bias_ptr, 0, classes, col, D, HAS_HEAD_BIAS, CLASS_CHUNK
                )
                if HAS_WEIGHT:
                    gamma = tl.load(weight_ptr + col, mask=col < D, other=0.0)
                if HAS_BIAS:
                    beta = tl.load(bias_ptr + col, mask=col < D, other=0.0)
                h = y
                if NORM:
                    h, _, _ = row_norm(y, mask, col, D, eps, None, None, RMS, False, False)
                if HAS_WEIGHT:
                    h *= gamma.to(tl.float32)[None, :]
                if HAS_BIAS:
                    h += beta.to(tl.float32)[None, :]
                entropy = exit_entropy(
                    h.to(x_ptr.dtype.element_ty), weight, bias, sample, logits_ptr,
                    head_weight_ptr, head_bias_ptr, classes,
                    T, D, FIRST_TOKEN, HAS_HEAD_BIAS, CLASS_CHUNK, ONE_CHUNK, PRECISION,
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
            x.contiguous(), all_packed(parameters),
            packed(scales), packed(weight), packed(bias), packed(exits.to(torch.int32)),
            packed(head_weight), packed(head_bias),
            torch.zeros_like(counts[:1]), logits, depth, counts,
            len(x), layers, classes, layer_eps, eps, threshold,
            INCLUDE_INPUT=include_input, HAS_SCALES=scales is not None,
            FIRST_TOKEN=pooling == "first", NORM=kind != "none", RMS=kind == "rms",
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            HAS_HEAD_BIAS=head_bias is not None, CLASS_CHUNK=_CLASS_CHUNK,
            ONE_CHUNK=classes <= _CLASS_CHUNK,
            **mixer_sizes(x, parameters),
        )  # fmt: skip
    return logits, depth, counts
