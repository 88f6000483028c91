"""Accuracy against time of trained models: the points of the curve are what early exit does."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from refusals import refusal
from small_case import TINY
from torch import nn

import acn_kernels as acn
from acn_kernels.models import create
from benchmarks.report import pictures
from benchmarks.report.results import load
from benchmarks.throughput import trained as command
from benchmarks.throughput.case import Setting
from benchmarks.throughput.runner import Plan, run
from benchmarks.throughput.trained import Trained, cases, curve, points

pytest.importorskip("sklearn", reason="the images are scikit-learn's digits")
LAYERS = 3


@pytest.fixture(scope="module", params=["acn", "residual"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = create("acn_mixer_digits", depth=LAYERS, wiring=request.param)
    nn.init.normal_(model.head.weight, std=0.3)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_point_is_what_early_exit_does(folder):
    trained = Trained("some", folder, "digits", "cpu")
    equal, others = points(trained)
    images, labels = trained.images_and_labels
    known, judged = trained.halves()
    assert len(labels[known]) + len(labels[judged]) == len(labels)
    assert others[0].threshold == 0.7
    for point in (equal, *others):
        early = acn.EarlyExit(trained.model, range(1, LAYERS), point.threshold)
        logits, depth = early(images[judged])
        right = (logits.argmax(-1) == labels[judged]).double().mean().item()
        assert right == pytest.approx(point.accuracy, abs=2 / len(labels[judged]))
        assert depth.double().mean().item() == pytest.approx(point.mean_depth, abs=0.02)
    # Chosen on the first half alone: there it costs half a point at most.
    early = acn.EarlyExit(trained.model, range(1, LAYERS), equal.threshold)
    lost = [
        (labels[known] == network(images[known]).argmax(-1)).double().mean().item()
        for network in (trained.model, lambda x: early(x).logits)
    ]
    assert lost[0] - lost[1] <= 0.005 + 2 / len(labels[known])


def test_the_network_for_others_computes_the_same(folder):
    trained = Trained("some", folder, "digits", "cpu")
    images = trained.images_and_labels[0][:9]
    with torch.no_grad():
        torch.testing.assert_close(trained.network()(images), trained.model(images))


@pytest.mark.parametrize(("batch", "images"), [(1, 128), (48, 144), (200, 200), (9999, None)])
def test_every_way_runs_as_many_images(batch, images, folder):
    """Full depth is timed on one batch, so many times: the batches have to be whole."""
    trained = Trained("some", folder, "digits", "cpu")
    (judged,) = trained.images_and_labels[0][trained.halves()[1]].shape[:1]
    images = judged if images is None else images
    ways = curve(trained, batch)(Setting("cpu"))
    assert f"{images} images in batches of {batch}," in ways.what


def test_the_command_tells_whether_a_case_failed(folder, tmp_path, monkeypatch, capsys):
    quick = partial(run, plan=Plan(quick=True, ours_only=True))
    monkeypatch.setattr(command, "run", lambda cases, out, _: quick(cases, out, TINY))
    arguments = ["--model", f"acn={folder}", "--data", "digits", "--batch", "200"]
    arguments += ["--out", str(tmp_path)]
    assert command.main(arguments) == 0
    monkeypatch.setattr(command, "points", lambda _: 1 / 0)
    assert command.main(arguments) == 1
    assert "trained_acn_b200: building the case failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "other=nowhere", "nowhere/config.json"),
        ("--model", "ACN={hybrid}", "--model has the names acn, ACN; their files need different"),
        ("--model", "other={hybrid}", "is wired hybrid; it takes acn or residual"),
        ("--model", "other={closing}", "is residual and closing; it takes one or the other"),
        ("--data", "nowhere", "data is 'nowhere', which is not there"),
        ("--device", "blah", "device is 'blah'; it takes cpu, cuda"),
        ("--batch", "0", "--batch is 0; it takes an integer of at least 1"),
        ("--out", __file__, f"--out: no file can be written into {__file__!r}: "),
    ],
)
def test_what_cannot_be_loaded_is_said_before_any_case(
    option, value, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("it ran"))
    for wiring in ("acn", "hybrid"):
        create("acn_mixer_digits", depth=LAYERS, wiring=wiring).save_pretrained(tmp_path / wiring)
    given = ["--model", f"acn={tmp_path / 'acn'}", "--data", "digits", "--out", tmp_path / "out"]
    closing = create("acn_mixer_digits", depth=LAYERS, wiring="residual", closing=True)
    closing.save_pretrained(tmp_path / "closing")
    value = value.format(hybrid=tmp_path / "hybrid", closing=tmp_path / "closing")
    assert message in refusal(capsys, command.main, *given, option, value)
    assert not (tmp_path / "out").exists()


def test_files_and_pictures(folder, tmp_path):
    chosen = cases([Trained("a-b c", folder, "digits", "cpu")], [1, 200])
    run(chosen, tmp_path, TINY, Plan(quick=True, ours_only=True))
    results = load(tmp_path)
    assert [result.name for result in results] == ["trained_a_b_c_b1", "trained_a_b_c_b200"]
    for result in results:
        assert not json.loads((tmp_path / f"{result.name}.json").read_text())["failed"]
        assert set(result.measured) <= set(result.quality)
        assert all(result.answer(question) for question in result.comparisons)
    assert len(pictures.draw(results, tmp_path)) == 2
