"""The demonstration, small: what it prints, what it leaves, and what an interrupt leaves."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from acn_kernels import files
from acn_kernels.cli import main
from acn_kernels.demo import experiment
from acn_kernels.demo import main as demo
from acn_kernels.models import Model
from acn_kernels.timing import interleaved_seconds

pytest.importorskip("sklearn", reason="the demonstration reads scikit-learn's digits")
pytest.importorskip("matplotlib", reason="the demonstration draws")


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(experiment, "TIMED_ROUNDS", 2)


def test_demo_measures_saves_and_draws(tmp_path, capsys, few_rounds):
    assert main(["demo", "--epochs", "1", "--seeds", "2", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "demo.json").read_text())
    assert printed["reloaded_exactly"] and len(printed["seeds"]) == 2
    for run in printed["seeds"]:
        for network in ("acn", "residual"):
            assert len(run[network]["accuracy"]) == 9
            assert set(run[network]["milliseconds"]) == {"1", "32", "512"}
    cut = Model.from_pretrained(tmp_path / "model")
    assert cut.config.depth == printed["seeds"][0]["acn"]["cutoff"]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "accuracy.png", "demo.json"}


def test_demo_prints_tables(tmp_path, capsys, few_rounds):
    assert main(["demo", "--epochs", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("test accuracy by depth", "cutoff", "early exit", "batch 512", "bit for bit"):
        assert words in printed


def test_what_the_picture_needs_is_asked_for_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "acn-kernels[demo]" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_where_nothing_can_be_written_is_seen_before_the_training(tmp_path, capsys, monkeypatch):
    (tmp_path / "afile").write_text("")
    monkeypatch.setattr(demo, "run_seed", lambda *_, **__: pytest.fail("it began to train"))
    for out in (tmp_path / "afile", tmp_path / "afile" / "sub", tmp_path / ("long" * 100)):
        assert main(["demo", "--out", str(out)]) == 2
        assert "--out: no file can be written into" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["afile"]


BAD_OPTIONS = {
    "--seeds": ("0", "seeds is 0"),
    "--epochs": ("0", "epochs is 0"),
    "--max-drop": ("2", "max_drop is 2.0"),
    "--device": ("moon", "device is 'moon'"),
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_bad_options_are_refused_before_any_training(option, tmp_path, capsys):
    value, message = BAD_OPTIONS[option]
    assert main(["demo", option, value, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_no_file(tmp_path):
    command = [sys.executable, "-m", "acn_kernels", "demo", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore the interrupt, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while "training" not in process.stderr.read(40):  # the progress bar: it is under way
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "interrupted" in process.stderr.read()
    assert not (tmp_path / "out").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with files.written_whole(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), files.written_whole(path) as temporary:
        temporary.write_text("half of the sec")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and os.listdir(path.parent) == ["file.txt"]


def test_ways_take_turns():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = interleaved_seconds(ways, rounds=60, warmup=0)
    rounds = [tuple(order[i : i + 2]) for i in range(0, 120, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}
    followers = Counter(itertools.pairwise(order))
    assert min(followers["a", "b"], followers["b", "a"], followers["a", "a"]) > 5
    assert list(samples) == ["a", "b"]
    assert all(len(times) == 60 and min(times) >= 0 for times in samples.values())


def test_a_slower_way_takes_longer():
    ways = {"slow": lambda: time.sleep(0.02), "fast": lambda: torch.zeros(1)}
    samples = interleaved_seconds(ways, rounds=3)
    assert min(samples["slow"]) > 0.02 > max(samples["fast"])
