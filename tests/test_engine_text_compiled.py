"""Compiled segments of an ACN BERT = the engine's own = PyTorch = a loop, written out."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
import torch
from engine_case import certainty, clear_threshold
from safetensors.torch import load_file, save_file
from text_case import (
    EXITS,
    LAYERS,
    check,
    check_bf16,
    classifier,
    first_exits,
    logits_by_depth,
    texts,
    without_engine,
)

from acn_kernels import EarlyExit, Engine, _extension
from acn_kernels.cli import main
from acn_kernels.inference import export, text_batch
from acn_kernels.inference.criteria import CRITERIA

if _extension.module() is None:
    pytest.skip(f"the compiled extension is {_extension.state()}", allow_module_level=True)


@pytest.mark.slow
def test_compiled_texts(tmp_path, capsys):
    model = classifier()
    model.save_pretrained(tmp_path / "saved")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "saved"), str(out), "--aot", "--exits", "1,3"]) == 0
    assert "bert, fp32" in capsys.readouterr().out
    plain, engine = Engine.from_folder(out), Engine.from_folder(out, compiled=True)
    assert (plain.compiled_segments, engine.compiled_segments) == (0, 3)
    longest = model.config.max_position_embeddings
    for batch, length in ((0, 9), (1, 9), (1, 1), (3, longest), (60, 7), (1000, 2)):
        for rows in (1, 2, 3):  # without a mask, without token types, and with both
            given = dict(list(texts(batch, length).items())[:rows])
            by_depth, inputs = logits_by_depth(model, given), text_batch(**given)
            for criterion in CRITERIA:
                threshold = clear_threshold(certainty(by_depth[EXITS], criterion)) if batch else 0.5
                depths = first_exits(by_depth, criterion, threshold)
                for micro_batch in (None, 7):
                    result = engine(inputs, EXITS, threshold, criterion, micro_batch=micro_batch)
                    check(result, by_depth, depths)
                    assert result.counts == {k: int((depths == k).sum()) for k in (*EXITS, LAYERS)}
                check(plain(inputs, EXITS, threshold, criterion), by_depth, depths)
            for exits in ([2], [1, 2], [1, 2, 3]):  # some segments are the engine's own
                threshold = clear_threshold(certainty(by_depth[exits], "margin")) if batch else 0.5
                expected = plain(inputs, exits, threshold, "margin")
                result = engine(inputs, exits, threshold, "margin")
                assert torch.equal(result.depth, expected.depth)
                torch.testing.assert_close(result.logits, expected.logits, rtol=1e-4, atol=1e-4)
    given = texts(30)
    by_depth = logits_by_depth(model, given)
    threshold = clear_threshold(certainty(by_depth[EXITS], "entropy"))
    depths = first_exits(by_depth, "entropy", threshold)
    assert len(depths.unique()) > 1
    check(EarlyExit(without_engine(model), EXITS, threshold)(**given), by_depth, depths)
    without_python(out, text_batch(**given), threshold, by_depth, depths)
    refused(out)
    export(classifier(), out)
    with pytest.raises(ValueError, match="it holds no compiled segment"):
        Engine.from_folder(out, compiled=True)


def without_python(folder, batch, threshold, by_depth, depths) -> None:
    program = os.environ.get("ACN_INFER", "build/cpp/acn_infer")
    if not Path(program).is_file():
        return
    save_file({"texts": batch}, folder / "in.safetensors")
    options = ["--exits", "1,3", "--threshold", str(threshold), "--out", folder / "out.safetensors"]
    subprocess.run([program, folder, folder / "in.safetensors", "--aot", *options], check=True)
    written = load_file(folder / "out.safetensors")
    assert torch.equal(written["depth"], depths)
    expected = by_depth[depths, torch.arange(len(depths))]
    torch.testing.assert_close(written["logits"], expected, rtol=1e-4, atol=1e-4)


@contextlib.contextmanager
def replaced(file: Path, content: bytes):
    before = file.read_bytes()
    file.write_bytes(content)
    yield
    file.write_bytes(before)


def refused(folder) -> None:
    """Programs cut short, or of other layers than their name says."""
    first, last = folder / "segment-0-1.pt2", folder / "segment-3-4.pt2"
    whole = first.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        first.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"segment-0-1\.pt2 does not load"):
            Engine.from_folder(folder, compiled=True)
    first.write_bytes(last.read_bytes())
    expected = r"segment-0-1\.pt2 is for layers 3 to 4 of 32 tokens .* takes layers 0 to 1 of 32"
    with pytest.raises(ValueError, match=expected):
        Engine.from_folder(folder, compiled=True)
    first.write_bytes(whole)
    weights = folder / "model.safetensors"
    others = bytearray(weights.read_bytes())
    others[-1] ^= 1
    with replaced(weights, others), pytest.raises(ValueError, match=r"of model [0-9a-f]{8}; here"):
        Engine.from_folder(folder, compiled=True)
    last.rename(folder / "segment-3-5.pt2")
    with pytest.raises(ValueError, match="layers that a model of 4 lacks"):
        Engine.from_folder(folder, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"wiring": "residual"}, {"alpha": 0.3}])
def test_compiled_texts_of_every_alpha(changes, tmp_path):
    model = classifier(**changes)
    export(model, tmp_path, aot_exits=[2])
    engine = Engine.from_folder(tmp_path, compiled=True)
    assert engine.compiled_segments == 2
    for batch, length in ((1, 5), (40, 9)):
        given = texts(batch, length)
        by_depth = logits_by_depth(model, given)
        threshold = clear_threshold(certainty(by_depth[[2]], "entropy"))
        depths = torch.where(certainty(by_depth[2], "entropy") < threshold, 2, LAYERS)
        check(engine(text_batch(**given), [2], threshold), by_depth, depths)


@pytest.mark.slow
def test_compiled_texts_in_bf16(tmp_path):
    model, given = classifier(), texts(33)
    export(model, tmp_path, depth=3, dtype="bf16", aot_exits=[1])
    engine = Engine.from_folder(tmp_path, compiled=True)
    assert engine.compiled_segments == 2
    truth = logits_by_depth(model.bfloat16().double(), given)
    for threshold, depth in ((0.0, 3), (float("inf"), 1)):
        logits, depths, _, _ = engine(text_batch(**given), [1], threshold)
        assert (depths == depth).all()
        check_bf16(logits, truth[depth])


def test_exits_that_the_text_model_lacks(tmp_path):
    with pytest.raises(ValueError, match="aot_exits is 9; it takes an integer from 0 to 4"):
        export(classifier(), tmp_path, aot_exits=[9])
    assert not list(tmp_path.iterdir())
