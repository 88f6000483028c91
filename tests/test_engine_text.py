"""ACN BERT in the C++ engine = a loop over every sub-network, written out, on padded texts."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_case import certainty, clear_threshold
from language_models import WORDS, small_bert
from safetensors.torch import load_file, save_file
from text_case import (
    CLASSIFIER,
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
from torch import nn

from acn_kernels import EarlyExit, Engine, _extension
from acn_kernels.cli import main
from acn_kernels.inference import export, text_batch
from acn_kernels.inference.criteria import CRITERIA

if _extension.module() is None:
    pytest.skip(f"the compiled extension is {_extension.state()}", allow_module_level=True)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_texts_leave_where_the_loop_says(criterion, batch):
    model, given = classifier(), texts(batch)
    by_depth = logits_by_depth(model, given)
    threshold = clear_threshold(certainty(by_depth[EXITS], criterion))
    depths = first_exits(by_depth, criterion, threshold)
    engine = Engine.from_model(model)
    for micro_batch in (None, 1, 7):
        result = engine(text_batch(**given), EXITS, threshold, criterion, micro_batch=micro_batch)
        check(result, by_depth, depths)
        assert result.counts == {k: int((depths == k).sum()) for k in (*EXITS, LAYERS)}


@pytest.mark.parametrize("changes", [{"wiring": "residual"}, {"alpha": 0.3}])
def test_every_alpha(changes, tmp_path):
    model, given = classifier(**changes), texts(20)
    by_depth = logits_by_depth(model, given)
    threshold = clear_threshold(certainty(by_depth[EXITS], "entropy"))
    depths = first_exits(by_depth, "entropy", threshold)
    export(model, tmp_path)
    for engine in (Engine.from_model(model), Engine.from_folder(tmp_path)):
        for micro_batch in (None, 3):
            result = engine(text_batch(**given), EXITS, threshold, micro_batch=micro_batch)
            check(result, by_depth, depths)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_every_depth_of_the_model(rows):
    """Without a mask, without token types, and with both."""
    model, given = classifier(), texts(4)
    given = dict(list(given.items())[:rows])
    engine = Engine.from_model(model)
    for k in range(LAYERS + 1):
        with torch.no_grad():
            expected = model.truncate(k)(**given).logits
        result = engine(text_batch(**given), depth=k)
        torch.testing.assert_close(result.logits, expected, rtol=1e-4, atol=1e-4)
    assert engine(text_batch(**texts(0))).logits.shape == (0, 5)


def test_bf16(tmp_path):
    model, given = classifier(), texts(33)
    export(model, tmp_path, dtype="bf16")
    engine = Engine.from_folder(tmp_path)
    assert engine.dtype == torch.bfloat16
    truth = logits_by_depth(model.bfloat16().double(), given)[LAYERS]
    check_bf16(engine(text_batch(**given)).logits, truth)


def test_an_exported_folder_is_the_model(tmp_path, capsys):
    model, batch = classifier(), text_batch(**texts(5))
    export(model, tmp_path / "out")
    exported, live = Engine.from_folder(tmp_path / "out"), Engine.from_model(model)
    assert torch.equal(exported(batch).logits, live(batch).logits)
    assert torch.equal(exported(batch, EXITS, 1.2).depth, live(batch, EXITS, 1.2).depth)
    model.save_pretrained(tmp_path / "saved")
    command = ["export", str(tmp_path / "saved"), str(tmp_path / "cut"), "--depth", "2"]
    assert main(command) == 0
    assert "bert, fp32" in capsys.readouterr().out
    logits = Engine.from_folder(tmp_path / "cut")(batch).logits
    torch.testing.assert_close(logits, Engine.from_model(model)(batch, depth=2).logits)
    small_bert().save_pretrained(tmp_path / "words")
    assert main(["export", str(tmp_path / "words"), str(tmp_path / "cut")]) == 2
    assert f"it takes {CLASSIFIER}" in capsys.readouterr().err


def test_exports_run_without_python(tmp_path):
    program = os.environ.get("ACN_INFER", "build/cpp/acn_infer")
    if not Path(program).is_file():
        pytest.skip("acn_infer is not built (make cpp-test builds it)")
    model, batch = classifier(), text_batch(**texts(9))
    export(model, tmp_path)
    save_file({"texts": batch}, tmp_path / "in.safetensors")
    np.save(tmp_path / "in.npy", batch.numpy())
    expected = Engine.from_model(model)(batch, EXITS, 1.2)
    for source in ("in.safetensors", "in.npy"):
        out = tmp_path / f"{source}.safetensors"
        options = ["--exits", "1,3", "--threshold", "1.2", "--out", out]
        subprocess.run([program, tmp_path, tmp_path / source, *options], check=True)
        written = load_file(out)
        assert torch.equal(written["depth"], expected.depth)
        torch.testing.assert_close(written["logits"], expected.logits, rtol=1e-5, atol=1e-5)


def test_what_the_engine_does_not_run(tmp_path):
    def refused(model, why):
        for run in (Engine.from_model, lambda model: export(model, tmp_path)):
            with pytest.raises(ValueError, match=f"does not run this model: .*{why}"):
                run(model)

    refused(small_bert(), "for classification")
    for changes in ({"granularity": "sublayer"}, {"wiring": "hybrid"}, {"wiring": "feedforward"}):
        refused(classifier(**changes), "not plain")
    mixed = classifier()
    mixed.alpha = [0.0, 0.5, 1.0, 1.0]
    refused(mixed, "one alpha")
    refused(classifier(layer_norm_eps=1e-5), "eps 1e-05")
    hooked = classifier()
    hooked.blocks[1].register_forward_hook(lambda *_: None)
    refused(hooked, "hooks")
    replaced = classifier()
    replaced.bert.pooler = nn.Sequential(replaced.bert.pooler)
    refused(replaced, "a Sequential")
    assert not list(tmp_path.iterdir())


def test_batches_that_are_refused():
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="input_ids has shape"):
        text_batch(ids[0])
    with pytest.raises(ValueError, match="attention_mask is"):
        text_batch(ids, ids[:, :2])
    with pytest.raises(ValueError, match=r"token_type_ids is torch\.float32"):
        text_batch(ids, ids, ids.float())
    engine = Engine.from_model(classifier())
    with pytest.raises(ValueError, match=f"words holds {WORDS}; it takes 0 to {WORDS - 1}"):
        engine(text_batch(ids * WORDS))
    with pytest.raises(ValueError, match="tokens has shape"):
        engine(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("changes", [{}, {"wiring": "residual"}, {"alpha": 0.3}])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_early_exit_of_texts(rows, changes):
    """On the engine, in PyTorch and by the loop, with the arguments that the model itself takes."""
    model = classifier(**changes)
    given = dict(list(texts(30).items())[:rows])
    by_depth = logits_by_depth(model, given)
    threshold = clear_threshold(certainty(by_depth[EXITS], "entropy"))
    depths = first_exits(by_depth, "entropy", threshold)
    assert len(depths.unique()) > 1
    for run, engine in ((model, True), (without_engine(copy.deepcopy(model)), False)):
        early = EarlyExit(run, EXITS, threshold)
        for result in (early(**given), early(*given.values())):
            check(result, by_depth, depths)
        assert (early._live is not None) == engine


def test_early_exit_follows_the_model():
    model, given = classifier(), texts(4)
    early = EarlyExit(model, [], 0.0)

    def follows(on_the_engine=True):
        with torch.no_grad():
            expected = model(**given).logits
        torch.testing.assert_close(early(**given).logits, expected, rtol=1e-4, atol=1e-4)
        assert (early._live is not None) == on_the_engine

    follows()
    first = early._live
    with torch.no_grad():
        model.classifier.bias.add_(1)
    follows()
    assert early._live is first
    model.alpha = 0.4
    follows()
    assert early._live is not first
    model.bert.pooler = nn.Sequential(model.bert.pooler)
    follows(on_the_engine=False)


def test_training_mode_drops_out():
    model, given = classifier().train(), texts(4)
    early = EarlyExit(model, [], 0.0)
    early(**given)
    assert early._live is None


def test_early_exit_takes_classifiers():
    with pytest.raises(TypeError, match="sequence classification"):
        EarlyExit(small_bert(), EXITS, 0.5)
