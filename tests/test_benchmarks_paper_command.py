"""The command of the paper's experiments: what it refuses, what it only says, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from processes import until
from refusals import refusal

from benchmarks.paper import dry_run, records, runner
from benchmarks.paper.__main__ import main
from benchmarks.paper.spec import Data


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "blah", "device is 'blah'; it takes cpu, cuda"),
        ("--device", "cuda:x", "device is 'cuda:x'; it takes cpu, cuda"),
        ("--device", f"cuda:{torch.cuda.device_count()}", "device is 'cuda:"),
        ("--jobs", "0", "--jobs is 0; it takes an integer of at least 1"),
        ("--seeds", "0", "--seeds is 0; it takes an integer of at least 1"),
        ("--budget", "nan", "--budget is nan; it takes a number of seconds"),
        ("--out", "/proc", "--out: no file can be written into '/proc': "),
        ("--out", __file__, f"--out: no file can be written into {__file__!r}: "),
        ("--work", __file__, f"--work: no file can be written into {__file__!r}: "),
    ],
)
def test_what_cannot_be_followed_is_said_before_anything_starts(
    option, value, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("it ran"))
    given = ["--preset", "smoke", "--all", "--out", tmp_path / "out", "--work", tmp_path / "work"]
    assert message in refusal(capsys, main, *given, option, value)


def test_data_that_nobody_named_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ACN_DATA_DIR", raising=False)
    given = ["--preset", "small", "--experiment", "fig6", "--out", tmp_path, "--work", tmp_path]
    assert "no data folder: name one by --data-dir" in refusal(capsys, main, *given)


def test_a_result_of_another_commit_is_not_reported(tmp_path, capsys):
    other = {"experiment": "fig6", "environment": {"sources": "abc", "commit": "1"}}
    records.write(tmp_path / "smoke" / "fig6.json", other)
    given = ["--report", "--preset", "smoke", "--out", tmp_path]
    assert "measured with other code, at commit 1" in refusal(capsys, main, *given)
    assert not (tmp_path / "smoke" / "report.md").exists()


def test_a_preset_has_experiments_of_its_own(capsys):
    has = "--preset medium has only fig1_2, table2, table5, cheaper"
    assert has in refusal(capsys, main, "--preset", "medium", "--experiment", "fig6")
    assert main(["--preset", "medium", "--all", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "cheaper" in printed and "fig6" not in printed


def test_a_dry_run_asks_for_no_device(capsys):
    gpu = f"cuda:{torch.cuda.device_count()}"
    assert main(["--experiment", "fig6", "--dry-run", "--device", gpu]) == 0
    assert "it takes --experiment, --all or --report" in refusal(capsys, main)


def test_dry_run_of_the_paper_needs_no_data(capsys):
    chosen = [f"--experiment={name}" for name in ("fig4", "table5")]
    assert main(["--preset", "paper", *chosen, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "DenseFormer" in printed and "TFLOPs in all" in printed and "QQP and QNLI" in printed
    assert dry_run.samples(Data("cifar10", per_class=100)) == 1000
    assert dry_run.samples(Data("cifar10", classes=(0, 1), train=20_000)) == 10_000


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups to ask")
def test_ended_by_a_signal_it_leaves_no_process_behind(tmp_path):
    """As ``timeout`` ends it: a worker that went on would take its core from what comes next."""
    pytest.importorskip("sklearn", reason="the smoke preset trains on scikit-learn's digits")
    work = tmp_path / "work"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "benchmarks.paper", "--preset", "smoke", "--experiment", "fig6",
            "--seeds", "200", "--jobs", "2", "--out", tmp_path / "out", "--work", work,
        ],
        start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: list(work.glob("networks/*.lock")), seconds=120)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        until(lambda: not has_processes(process.pid), seconds=30)
    finally:
        if has_processes(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert not list((tmp_path / "out").iterdir())


def has_processes(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
