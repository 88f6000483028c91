"""ACN BERT in the C++ engine on a GPU = PyTorch = a loop, written out, on every way it has."""

from __future__ import annotations

import math

import pytest
import torch
from engine_case import certainty, clear_threshold
from test_engine_cuda import WAYS, check_no_host_waits, named, needs_kernels, run
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

from acn_kernels import EarlyExit, Engine
from acn_kernels.inference import export, text_batch
from acn_kernels.inference.criteria import CRITERIA

pytestmark = [pytest.mark.gpu, needs_kernels]


def on_gpu(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: row.cuda() for name, row in given.items()}


@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("changes", [{}, {"wiring": "residual"}, {"alpha": 0.3}])
def test_every_way_and_criterion(changes, criterion, way):
    model, given = classifier(**changes), texts(33)
    by_depth, inputs = logits_by_depth(model, given), text_batch(**on_gpu(given))
    middle = clear_threshold(certainty(by_depth[EXITS], criterion))
    engine = Engine.from_model(model.cuda())
    for threshold in (0.0, middle, math.inf if criterion == "entropy" else 1.0):
        depths = first_exits(by_depth, criterion, threshold)
        for _ in range(2):  # what a graph holds is good for more than one batch
            result = run(engine, inputs, threshold, criterion, exits=EXITS, **way)
            check(result, by_depth, depths, "cuda")
            assert result[2] == {k: int((depths == k).sum()) for k in (*EXITS, LAYERS)}
            assert result[3] == 0


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1, 3, 17, 1000])
def test_batches_and_texts_of_any_size(batch, rows):
    model = classifier().cuda()
    for length in (1, 9, 14, 17, 32):  # 9 and 14 are of one kind
        given = dict(list(texts(batch, length).items())[:rows])
        by_depth = logits_by_depth(model.cpu(), given)
        threshold = clear_threshold(certainty(by_depth[EXITS], "entropy")) if batch else 0.5
        depths = first_exits(by_depth, "entropy", threshold)
        early = EarlyExit(model.cuda(), EXITS, threshold)
        for _ in range(3):  # as it comes, captured, and from what was captured
            check(early(**on_gpu(given)), by_depth, depths, "cuda")
            assert early._live is not None
        early = EarlyExit(without_engine(model), EXITS, threshold)
        check(early(**on_gpu(given)), by_depth, depths, "cuda")
        model.blocks.backend = "auto"


@pytest.mark.parametrize("way", WAYS, ids=named)
def test_shorter_texts_after_longer_ones(way):
    model = classifier()
    batches = [texts(batch, length) for batch, length in ((7, 16), (5, 11), (8, 13), (6, 3))]
    by_depths = [logits_by_depth(model, given) for given in batches]
    values = [certainty(by_depth[EXITS], "entropy") for by_depth in by_depths]
    threshold = clear_threshold(torch.cat(values, 1))
    engine = Engine.from_model(model.cuda())
    for given, by_depth in zip(batches, by_depths, strict=True):
        result = run(engine, text_batch(**on_gpu(given)), threshold, exits=EXITS, **way)
        check(result, by_depth, first_exits(by_depth, "entropy", threshold), "cuda")
    if way.get("graphs") in ("steps", "whole"):
        assert engine._native.graphs[:2] == (1, 1)


@pytest.mark.parametrize("way", WAYS, ids=named)
def test_bf16(way):
    model, given = classifier().bfloat16(), texts(33)
    truth = logits_by_depth(model.double(), given)
    engine, inputs = Engine.from_model(model.bfloat16().cuda()), text_batch(**on_gpu(given))
    for threshold, depth in ((0.0, LAYERS), (math.inf, 1)):
        logits, depths, _, _ = run(engine, inputs, threshold, exits=EXITS, **way)
        assert (depths == depth).all()
        check_bf16(logits, truth[depth])


@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_numbers_out_of_range_run_to_full_depth(value, row, way):
    model, given = classifier(), texts(3)
    by_depth, inputs = logits_by_depth(model, given), text_batch(**given)
    inputs[1, row, 4] = value
    logits, depth, counts, undecided = run(
        Engine.from_model(model.cuda()), inputs.cuda(), math.inf, exits=EXITS, **way
    )
    assert depth.tolist() == [1, LAYERS, 1] and undecided == 1
    assert counts == {1: 2, 3: 0, LAYERS: 1}
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[[0, 2]].cpu(), by_depth[1][[0, 2]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 16])
def test_no_host_waits_inside_a_small_batch(batch):
    given = on_gpu(texts(batch))
    check_no_host_waits(EarlyExit(classifier().cuda(), EXITS, 1.2), **given)


def test_a_saved_model_is_the_live_one(tmp_path):
    model, inputs = classifier(), text_batch(**texts(7)).cuda()
    export(model, tmp_path)
    live = Engine.from_model(model.cuda())
    saved = Engine.from_folder(tmp_path, device="cuda")
    assert saved.device == live.device == inputs.device
    assert torch.equal(saved(inputs, EXITS, 1.2).logits, live(inputs, EXITS, 1.2).logits)
    with pytest.raises(ValueError, match="tokens is Long on cpu; it takes Long on cuda"):
        live(inputs.cpu())
    with pytest.raises(ValueError, match="compiled segments run on cpu"):
        Engine.from_folder(tmp_path, compiled=True, device="cuda")
