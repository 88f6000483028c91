"""What a machine with a GPU is asked for, as far as it can be tried without one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import until
from small_case import TINY, small_case, small_run
from test_benchmarks_report import raw_result

from benchmarks import predict
from benchmarks.predict import Ceilings, predictions
from benchmarks.report.gpu_tests import Failure, outcomes
from benchmarks.report.predictions import beside_measured
from benchmarks.report.results import Result
from benchmarks.report.summary import summary
from benchmarks.throughput import peers
from benchmarks.throughput.case import Setting, Ways
from benchmarks.throughput.runner import BRIEF_ROUNDS, Plan, measure, run
from benchmarks.throughput.suites import SUITES

ROOT = Path(__file__).parents[1]
CASES = {case.name: case for case in SUITES["all"]}
FAILING = """
import pytest

@pytest.mark.parametrize("i", range(3))
def test_numbers(i):
    assert i != 1, "one is wrong"

@pytest.fixture
def broken():
    raise OSError("no such device")

def test_fixture(broken):
    pass

def test_skipped():
    pytest.skip("not here")
"""


def on_gpu(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks/on_gpu.sh"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "TRITON_INTERPRET": "0"},
        cwd=cwd,
    )


# --- brief runs


def test_a_brief_run_compiles_only_what_a_target_names():
    def compiling():
        peers._require_leave_to_compile()
        return TINY_VALUE

    TINY_VALUE = small_case().build(TINY).entries["plain"].call()

    def build(setting: Setting) -> Ways:
        ways = small_case(aimed=compiling, idle=compiling).build(setting)
        ways.compare("fast enough?", "better", "aimed", 1.0)
        ways.compare("just asking", "better", "idle")
        return ways

    case = small_case()
    case = type(case)(case.name, build, rounds=41)
    brief, whole = measure(case, TINY, Plan(brief=True)), measure(case, TINY)
    assert set(brief["seconds"]) == {"plain", "better", "aimed"}
    assert "left out of a brief run" in brief["missing"]["idle"]
    assert len(brief["seconds"]["plain"]) == BRIEF_ROUNDS
    assert set(whole["seconds"]) == {"plain", "better", "aimed", "idle"}
    assert len(whole["seconds"]["plain"]) == 41


def test_a_whole_run_measures_again_what_a_brief_one_did(tmp_path):
    file = tmp_path / "small.json"

    def brief_after(**plan) -> bool:
        run([small_case()], tmp_path, TINY, Plan(resume=True, **plan))
        return '"brief": true' in file.read_text()

    assert brief_after(brief=True)
    assert brief_after(brief=True), "kept"
    assert not brief_after()
    assert not brief_after(brief=True), "the whole run has more"


# --- predictions


@pytest.mark.parametrize("prediction", predictions(Ceilings()), ids=lambda p: p.workload)
def test_a_prediction_names_ways_that_its_case_has(prediction):
    case, way, against, _ = prediction.measured
    entries = CASES[case].build(TINY).entries
    assert entries[way].ours and against in entries


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "fast"])
def test_a_ceiling_is_a_number_above_0(rate, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict.main([f"--copy={rate}"])
    assert f"argument --copy: it is {rate!r}; it takes a number above 0" in capsys.readouterr().err


def test_predictions_stand_beside_what_came_out():
    case, way, against, _ = next(
        p.measured for p in predictions(Ceilings()) if p.workload.endswith("D 128, forward")
    )
    seconds = {against: [0.008, 0.010, 0.012], way: [0.002, 0.002, 0.002]}
    result = Result(raw_result(case=case, peer=against, seconds=seconds))
    rows = beside_measured([result]).splitlines()
    (row,) = [row for row in rows if "D 128, forward" in row]
    assert "| 5.000 (4.444 to 5.455) | infer_mlp128.json |" in row, "times faster, not slower"
    assert sum("not measured" in row for row in rows) == len(rows) - 3
    slow = predictions(Ceilings(copy=2e9, matmul=1e12))  # as the file says
    assert all(f"| {p.ratio:.2f} | " in row for p, row in zip(slow, rows[2:], strict=True))
    assert beside_measured([Result(raw_result())]) is None


# --- the tests that failed


@pytest.fixture
def failing(tmp_path) -> Path:
    """The folder of a run whose tests failed."""
    (tmp_path / "test_some.py").write_text(FAILING)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short",
         "--junit-xml=gpu_tests.xml", "-o", "junit_family=xunit1", "test_some.py"],
        cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    return tmp_path


def test_failed_tests_and_what_they_say(failing):
    passed, skipped, failures = outcomes(failing / "gpu_tests.xml")
    assert (passed, skipped) == (2, 1)
    assert failures == [
        Failure("test_some.py::test_numbers[1]", "AssertionError: one is wrong"),
        Failure("test_some.py::test_fixture", "OSError: no such device"),
    ]


def test_a_summary_is_one_page(failing):
    small_run(failing)
    (failing / "pieces.txt").write_text("== tests: exit 1 after 3 s\n")
    page = summary(failing)
    assert page.startswith("== tests: exit 1 after 3 s")
    assert "gpu_tests.xml: 2 passed, 1 skipped, 2 failed" in page
    assert "test_some.py::test_fixture: OSError: no such device" in page
    many = "".join(
        f'<testcase file="t.py" name="n{i}"><failure>E   wrong{"!" * 500}</failure></testcase>'
        for i in range(400)
    )
    (failing / "gpu_tests.xml").write_text(f"<s>{many}</s>")
    assert "and 375 more" in summary(failing) and len(summary(failing)) < 10_000


def test_an_xml_file_cut_short_is_said_to_be(tmp_path):
    (tmp_path / "gpu_tests.xml").write_text("<testsuites><testcase")
    with pytest.raises(ValueError, match="is no XML"):
        outcomes(tmp_path / "gpu_tests.xml")
    assert "is no XML" in summary(tmp_path)


def test_a_result_cut_short_is_said_to_be(tmp_path):
    (tmp_path / "small.json").write_text("")
    assert "small.json is no JSON: " in summary(tmp_path)


# --- the command


@pytest.mark.parametrize("arguments", [[], ["--dry"], ["{out}", "everything"]])
def test_on_gpu_refuses_what_it_does_not_know(tmp_path, arguments):
    done = on_gpu(*(argument.format(out=tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert "usage: benchmarks/on_gpu.sh OUT [--brief] [--dry-run] [PIECE ...]" in done.stderr


@pytest.mark.parametrize(
    ("piece", "status", "said"),
    [("report", 2, "small.json is no JSON"), ("failed", 1, "No such file or directory")],
)
def test_a_piece_that_fails_is_named_and_tells_by_the_status(piece, status, said, tmp_path):
    out = tmp_path / "a run"
    out.mkdir()
    (out / "small.json").write_text("")
    done = on_gpu("a run", "--dry-run", piece, cwd=tmp_path)
    assert done.returncode == 1 and said in done.stdout
    assert f"== {piece}: exit {status} after" in (out / "pieces.txt").read_text()
    assert f"all of it is in {out}.tar.gz" in done.stdout


def test_a_place_that_takes_no_file_ends_it_at_once():
    done = on_gpu("/proc", "--dry-run", "report")
    assert done.returncode == 2 and "/proc/pieces.txt" in done.stderr and not done.stdout


@pytest.mark.slow
def test_an_interrupt_ends_the_piece_and_all_that_would_follow(tmp_path):
    out = tmp_path / "run"
    command = ["bash", ROOT / "benchmarks/on_gpu.sh", out, "--dry-run", "kernels", "train"]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHON": sys.executable, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    until(lambda: (out / "kernel_copy.json").exists(), seconds=120)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert "KeyboardInterrupt" in (out / "kernels.log").read_text()
    assert (out / "pieces.txt").read_text() == "== kernels: interrupted\n"
    assert Path(f"{out}.tar.gz").exists() and not (out / "train.log").exists()


def test_the_names_of_cases_are_pieces():
    pattern = (ROOT / "benchmarks/on_gpu.sh").read_text()
    families = "kernel|train|infer|exit|gpt9x512"
    assert f"^({families})_" in pattern
    on_a_gpu = [name for name in CASES if not name.startswith(("cpu_", "smoke_"))]
    assert all(name.split("_")[0] in families.split("|") for name in on_a_gpu)


@pytest.mark.slow
def test_a_dry_run_leaves_checked_files_and_an_archive(tmp_path):
    """A few pieces of it; all of them take minutes."""
    out = tmp_path / "first"
    done = on_gpu(str(out), "--dry-run", "--brief", "kernels", "train_mlp128", "report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "report.md").read_text().startswith("# Throughput")
    assert "| train_mlp128.json |" in done.stdout, "predictions"
    pieces = (out / "pieces.txt").read_text().splitlines()
    assert [line.split()[1] for line in pieces] == ["kernels:", "train_mlp128:", "report:"]
    listed = subprocess.run(
        ["tar", "-tzf", f"{out}.tar.gz"], capture_output=True, text=True
    ).stdout.split()
    assert {"first/train_mlp128.json", "first/kernel_copy.json", "first/pieces.txt"} <= set(listed)
