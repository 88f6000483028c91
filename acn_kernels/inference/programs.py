"""What AOTInductor compiles of a model for the C++ engine: its segments, or all of its parts."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from acn_kernels.blocks import PostNormStack
from acn_kernels.files import written_whole
from acn_kernels.inference.batch import check_in_parts
from acn_kernels.inference.program import batch_program
from acn_kernels.models import ImageClassifier
from acn_kernels.models.base import CONFIG_FILE, WEIGHTS_FILE
from acn_kernels.stack import FusedACNStack

ONNX_FILE = "model.onnx"  # where the command writes one

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


class _Stem(nn.Module):
    """x_0 of inputs [B, ...]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model.embed(inputs).contiguous()


class _Segment(nn.Module):
    """The state at ``end`` from that at ``begin``: (x, y), or x alone where nothing is summed."""

    def __init__(self, stack: FusedACNStack, begin: int, end: int) -> None:
        super().__init__()
        self.stack, self.begin, self.end = stack, begin, end

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        y = None if y is None else y.clone()  # advance works in place
        return _present(self.stack.advance(x, y, start=self.begin, stop=self.end))


class _TextSegment(nn.Module):
    """The same of a BERT's blocks, as the engine's own segments work: y [B, 1, D] in fp32 holds the
    first token of each term but the latest, scaled by alpha; none at alpha 0."""

    def __init__(self, stack: PostNormStack, begin: int, end: int) -> None:
        super().__init__()
        self.stack, self.begin, self.end = stack, begin, end

    def forward(self, x: Tensor, mask: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        for i in range(self.begin, self.end):
            if self.stack.alpha:
                term = self.stack.alpha * x[:, :1].float()
                y = term if y is None else y + term
            x, _ = self.stack.advance(x, start=i, stop=i + 1, attn_mask=mask)
        return _present((x, y))


class _Head(nn.Module):
    """Logits [B, classes] of the state at any depth."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        stack = self.model.blocks
        return self.model.forward_head(stack.output(x, y, len(stack)))


@torch.no_grad()
def compile_segments(model: ImageClassifier, folder: Path, stops: Sequence[int]) -> None:
    """Writes ``segment-BEGIN-END.pt2`` for the layers between each two of ``stops``, the first of
    which is 0."""
    x = model.embed(example_of(model)).contiguous()
    _compile_segments(model, x, folder, stops, _model_in(folder))


@torch.no_grad()
def compile_text_segments(model: nn.Module, folder: Path, stops: Sequence[int]) -> None:
    """The same of an ACN BERT; for texts of any length that it has positions for."""
    longest, of = model.config.max_position_embeddings, _model_in(folder)
    length = min(2, longest)  # as for batches, one would be taken for a constant
    tokens = torch.export.Dim("tokens", min=1, max=longest) if longest > 1 else None
    x = next(model.parameters()).new_zeros(2, length, model.config.hidden_size)
    state = (x, torch.ones(2, 1, 1, length, dtype=torch.bool))
    others = [{}, {}] if tokens is None else [{1: tokens}, {3: tokens}]
    for begin, end in itertools.pairwise(stops):
        segment = _TextSegment(model.blocks, begin, end)
        label = _label(longest, x, begin, end, of)
        _compile(segment, state, _segment_path(folder, begin, end), label, others)
        x, *y = segment(*state)
        state, others = (x, state[1], *y), [*others[:2], *({} for _ in y)]


@torch.no_grad()
def compile_parts(
    model: nn.Module, folder: Path, stops: Sequence[int], example: Tensor | None
) -> None:
    """Writes ``model`` as programs alone: ``stem.pt2``, the segments, ``head.pt2``, and a
    configuration of the family "compiled". They replace a model in ``folder``, once all are there.

    Args:
        model: with ``embed(inputs)``, ``blocks`` (a FusedACNStack) and ``forward_head(y)``, on the
            CPU. stops: as for :func:`compile_segments`. example: inputs [B, ...] as ``embed``
            takes them, for any model but an ImageClassifier.

    Raises:
        TypeError, ValueError: an argument is not what is accepted.
    """
    example = _checked(model, example)
    if stops[-1] == 0:
        raise ValueError("there are no layers; it takes at least one")
    x = _Stem(model)(example)
    logits = _Head(model)(*_Segment(model.blocks, 0, stops[-1])(x))
    if logits.dim() != 2:
        raise ValueError(f"forward_head returns shape {tuple(logits.shape)}; it takes [B, classes]")
    of = secrets.token_hex(8)  # programs of two exports make no model, be their weights the same
    config = {
        "family": "compiled",
        "model": of,
        "depth": stops[-1],
        "classes": logits.shape[1],
        "input": list(example.shape[1:]),
        "input_dtype": _NAMES[example.dtype],
        "dtype": _NAMES[logits.dtype],
        "state": list(x.shape[1:]),
        "stops": stops[1:],
    }
    with exported_whole(folder) as parts:
        _compile(_Stem(model), [example], parts / "stem.pt2", f"the stem of model {of}")
        state = _compile_segments(model, x, parts, stops, of)
        _compile(_Head(model), state, parts / "head.pt2", f"the head of model {of}")
        (parts / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


@contextmanager
def exported_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder for all files of an export. They take the place of those of an export
    before it when the block ends without an error; until then those stand in ``folder``.

    The configuration goes first and comes last: interrupted between, the folder is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as name:
        parts = Path(name)
        yield parts
        programs = (*folder.glob("segment-*.pt2"), folder / "stem.pt2", folder / "head.pt2")
        others = (folder / WEIGHTS_FILE, folder / ONNX_FILE)
        for stale in (folder / CONFIG_FILE, *programs, *others):
            stale.unlink(missing_ok=True)
        for part in sorted(parts.iterdir(), key=lambda part: part.name == CONFIG_FILE):
            os.replace(part, folder / part.name)


def example_of(model: ImageClassifier) -> Tensor:
    """Two images: a batch of one would be taken for a constant."""
    config, size = model.config, model.config.image_size
    return next(model.parameters()).new_zeros(2, config.channels, size, size)


def _checked(model: nn.Module, example: Tensor | None) -> Tensor:
    check_in_parts(model)
    if model.blocks.scales is not None:
        raise ValueError("the sum has scales; one program for the head at all depths takes none")
    if isinstance(model, ImageClassifier):
        return example_of(model)
    if not isinstance(example, Tensor) or example.dim() == 0 or len(example) == 0:
        raise ValueError(
            f"example is {'None' if example is None else 'no batch'}; to compile a "
            f"{type(model).__name__} it takes a tensor [B, ...] of inputs"
        )
    example = example.detach().cpu()
    if example.is_floating_point():
        example = example.to(next(model.parameters()).dtype)
    if example.dtype not in _NAMES:
        raise ValueError(f"example is {example.dtype}; it takes fp32, bf16 or int64")
    return torch.cat([example, example])[:2].contiguous()


def _compile_segments(model, x, folder, stops, of: str) -> tuple[Tensor, ...]:
    """The state behind the last of them."""
    state = (x,)
    for begin, end in itertools.pairwise(stops):
        segment = _Segment(model.blocks, begin, end)
        label = _label(x.shape[1:-1].numel(), x, begin, end, of)
        _compile(segment, state, _segment_path(folder, begin, end), label)
        state = segment(*state)
    return state


def _model_in(folder: Path) -> str:
    """What tells the engine that segments and weights were written together: a checksum."""
    sum_ = 0
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        sum_ = zlib.crc32((folder / name).read_bytes(), sum_)
    return f"{sum_:08x}"


def _segment_path(folder: Path, begin: int, end: int) -> Path:
    return folder / f"segment-{begin}-{end}.pt2"


def _label(tokens: int, x: Tensor, begin: int, end: int, of: str) -> str:
    """What a segment is for, in the words of the engine, which refuses to run another."""
    sizes = f"{tokens} tokens of {x.shape[-1]} {_NAMES[x.dtype]}"
    return f"layers {begin} to {end} of {sizes} of model {of}"


def _compile(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    label: str,
    others: Sequence[Mapping[int, torch.export.Dim]] | None = None,
) -> None:
    program = batch_program(module, [tensor.contiguous() for tensor in inputs], others)
    with written_whole(path) as temporary:
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(temporary),
            inductor_configs={"aot_inductor.metadata": {"acn": label}},
        )


def _present(state: tuple[Tensor, Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in state if tensor is not None)
