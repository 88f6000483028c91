"""The commands probe and truncate, on a small network saved here."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from torch import nn

import acn_kernels as acn
from acn_kernels import analysis
from acn_kernels.analysis import command as commands
from acn_kernels.cli import main
from acn_kernels.models import Model, create
from acn_kernels.training.data import load_images

pytest.importorskip("sklearn", reason="the commands read scikit-learn's digits")


@pytest.fixture
def saved(tmp_path):
    """A network of which layer 2 decides and layers 3 and 4 add nothing."""
    network = create("acn_mixer_digits", depth=4).eval()
    nn.init.normal_(network.head.weight, std=0.3)
    for block in network.blocks[2:]:
        for parameter in block.channel_mlp.fc2.parameters():
            nn.init.zeros_(parameter)
    network.save_pretrained(tmp_path / "model")
    return network, tmp_path


def digits():
    samples = load_images("digits", 8, 1).test
    return samples[torch.arange(len(samples))]


def test_probe_prints_what_probe_finds(saved, capsys):
    network, folder = saved
    command = ["probe", str(folder / "model"), "--data", "digits", "--batch", "100"]
    assert main([*command, "--json", "--linear"]) == 0
    printed = json.loads(capsys.readouterr().out)
    truth = acn.probe(network, [digits()])
    assert printed["shared head"] == pytest.approx(truth.tolist())
    assert printed["contributions"] == pytest.approx(truth.diff().tolist())
    assert printed["contributions"][2:] == [0, 0] and len(printed["linear probe"]) == 5
    assert printed["parameters"][-1] == sum(p.numel() for p in network.parameters())
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "accuracy by depth, %, on 500 samples" in text and "MFLOPs" in text


def test_probe_draws(saved):
    pytest.importorskip("matplotlib", reason="pictures")
    picture = saved[1] / "probe.png"
    command = ["probe", str(saved[1] / "model"), "--data", "digits", "--picture", str(picture)]
    assert main(command) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    saved, capsys, monkeypatch
):
    pytest.importorskip("matplotlib", reason="pictures")
    folder = saved[1]
    (folder / "afile").write_text("")
    monkeypatch.setattr(commands, "load_images", lambda *_: pytest.fail("it began to measure"))
    for name, message in (
        ("x.xyz", "it takes a name that ends in ."),
        ("x", "it takes a name that ends in ."),
        ("folder.png", "a folder; it takes a file"),
        ("afile/x.png", "--picture: no file can be written into"),
    ):
        (folder / "folder.png").mkdir(exist_ok=True)
        command = ["probe", str(folder / "model"), "--data", "digits"]
        assert main([*command, "--picture", str(folder / name)]) == 2
        error = capsys.readouterr().err
        assert "--picture" in error and message in error


def test_the_table_is_there_where_drawing_fails(saved, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="pictures")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(analysis.Curves, "draw", fail)
    command = ["probe", str(saved[1] / "model"), "--data", "digits", "--picture"]
    assert main([*command, str(saved[1] / "x.png")]) == 2
    printed = capsys.readouterr()
    assert "accuracy by depth" in printed.out and "the disk is full" in printed.err


def test_truncate_sees_before_it_measures_whether_it_can_save(saved, capsys, monkeypatch):
    model, file = str(saved[1] / "model"), saved[1] / "afile"
    file.write_text("")
    monkeypatch.setattr(commands, "load_images", lambda *_: pytest.fail("it began to measure"))
    assert main(["truncate", model, str(file), "--data", "digits"]) == 2
    assert "DIR: no file can be written into" in capsys.readouterr().err


def test_truncate_at_a_depth_and_where_calibrate_says(saved, capsys):
    network, folder = saved
    model, cut = str(folder / "model"), folder / "cut"
    assert main(["truncate", model, str(cut), "--depth", "3"]) == 0
    images, _ = digits()
    assert torch.equal(Model.from_pretrained(cut).eval()(images), network(images, depth=3))
    assert main(["truncate", model, str(cut), "--data", "digits", "--max-drop", "0.02"]) == 0
    text = capsys.readouterr().out
    depth = Model.from_pretrained(cut).config.depth
    assert depth <= 2 and f"the first {depth} of 4 layers" in text and "19 of 20" in text


def test_data_of_other_classes(saved, capsys, monkeypatch):
    few = load_images("digits", 8, 1)._replace(classes=["0", "1"])
    monkeypatch.setattr(commands, "load_images", lambda *_: few)
    for name in ("probe", "truncate"):
        places = [str(saved[1] / place) for place in ("model", "cut")]
        assert main([name, *places[: 1 + (name == "truncate")], "--data", "digits"]) == 2
        assert "--data has 2 classes; the model tells 10 apart" in capsys.readouterr().err


def test_what_they_refuse(saved, capsys):
    model = str(saved[1] / "model")
    for command, message in (
        (["truncate", model, "x"], "it takes --depth, or --data"),
        (["truncate", model, "x", "--depth", "9"], "--depth is 9; it takes an integer from 0 to 4"),
        (["truncate", model, "x", "--data", "digits"], "it takes at least 765"),
        (["truncate", model, "x", "--depth", "2", "--max-drop", "0.1"], "--max-drop goes with"),
        (["probe", model, "--data", "digits", "--batch", "0"], "--batch is 0"),
        (["probe", str(saved[1] / "none"), "--data", "digits"], "none"),
        (["probe", model, "--data", "digits", "--device", "moon"], "device is 'moon'"),
        (["truncate", model, model, "--depth", "3"], "the model itself"),
        (["truncate", model, f"{model}/config.json", "--depth", "3"], "config.json"),
        (["export", model, model + "/."], "the model itself"),
        (["export", model, "x", "--aot", "--exits", "9"], "--exits holds 9; it takes depths above"),
        (["export", model, "x", "--aot", "--exits", "2", "--depth", "2"], "below 2, the layers"),
        (["export", model, "x", "--depth", "5"], "--depth is 5; it takes an integer from 0 to 4"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
    for exits in ("1,x", ""):
        with pytest.raises(SystemExit):
            main(["export", model, "x", "--aot", "--exits", exits])
        error = capsys.readouterr().err
        assert f"argument --exits: it is {exits!r}; it takes depths, as in 2,4" in error


@pytest.mark.parametrize("config", [{"model_type": "acn_bert"}, {"family": "bert"}, {}])
def test_other_models_are_told_from_image_classifiers(config, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(config))
    for command in (["probe", "--data", "digits"], ["truncate", "cut", "--depth", "1"]):
        assert main([command[0], str(tmp_path), *command[1:]]) == 2
        assert f"acn-kernels {command[0]} takes image classifiers: " in capsys.readouterr().err


@pytest.mark.parametrize("transformers", [None, types.ModuleType("transformers")])
def test_export_of_a_bert_without_a_sound_transformers(transformers, tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "acn_bert"}))
    for name in [name for name in sys.modules if name.startswith("acn_kernels.models.hugg")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "MODEL is an ACN BERT, which needs a working transformers, as pip install" in line
