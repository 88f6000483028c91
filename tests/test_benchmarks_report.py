"""The report says what the files say, losses too, and the README what the report says."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from refusals import refusal
from small_case import small_run

from benchmarks.report import __main__ as command
from benchmarks.report import pictures, readme, tables
from benchmarks.report.results import Result, Spread, load
from benchmarks.throughput.case import COPY_CEILING, FASTEST_PEER

ROOT = Path(__file__).parents[1]
SECONDS = {
    "peer": [0.010, 0.012, 0.011, 0.010, 0.020],
    "ours": [0.005, 0.007, 0.006, 0.005, 0.008],
    "slow": [0.030, 0.031, 0.032, 0.033, 0.034],
}
RATIOS = [a / b for a, b in zip(SECONDS["ours"], SECONDS["peer"], strict=True)]


def raw_result(**changes) -> dict:
    facts = {"relative_error": 1e-6, "peak_bytes": 2**21, "kept_bytes": 2**21, "seconds": 0.5}
    return {
        "case": "some_case", "what": "some work", "device": "cpu", "dtype": "torch.float32",
        "tiny": False, "quick": False, "peer": "peer", "ways": list(SECONDS), "ours": ["ours"],
        "same_work": ["peer", "ours"], "missing": {"elsewhere": "needs a GPU"},
        "failed": {"wrong": "RuntimeError: out of memory\nat line 3"}, "facts": {"mean_depth": 6.0},
        "bytes_moved": 6_000_000, "flops": None,
        "first_call": {"peer": facts, "ours": facts, "slow": {**facts, "kept_bytes": 2**22}},
        "ceilings": {"copy_bytes_per_s": 2e9, "matmul_flops_per_s": 1e12},
        "comparisons": [
            {"what": "won?", "way": "ours", "against": "peer", "at_most": 0.6},
            {"what": "lost?", "way": "slow", "against": "peer", "at_most": 1.0},
            {"what": "asked in vain", "way": "elsewhere", "against": "peer", "at_most": None},
            {"what": "copy", "way": "ours", "against": COPY_CEILING, "at_most": None},
            {"what": "half", "way": "ours", "against": "peer", "at_most": 1.2, "factor": 0.5},
            {"what": "memory", "way": "ours", "against": "slow", "at_most": 0.6, "of": "kept"},
        ],
        "environment": {"gpus": [], "torch": "2.x", "threads": 2, "commit": "abc"},
        "seconds": SECONDS, **changes,
    }  # fmt: skip


def test_medians_and_ratios_by_hand():
    result = Result(raw_result())
    assert result.seconds("ours").median == statistics.median(SECONDS["ours"]) == 0.006
    assert result.ratio("ours", "peer") == Spread(0.5, 0.5, RATIOS[2])
    assert sorted(RATIOS)[1:4] == pytest.approx([0.5, 0.5, RATIOS[2]])
    # 6 MB at 2 GB/s take 3 ms.
    assert result.ratio("ours", COPY_CEILING).median == pytest.approx(2.0)
    assert result.rate("ours") == pytest.approx((1e9, "B", 0.5))
    assert result.rate("slow") is None
    assert result.ratio("elsewhere", "peer") is None
    assert result.ratio("ours", FASTEST_PEER) == result.ratio("ours", "peer")
    swift = Result(raw_result(same_work=["peer", "slow"], seconds={**SECONDS, "slow": [1e-3] * 5}))
    assert swift.named(FASTEST_PEER) == "slow" and swift.ratio("ours", FASTEST_PEER).median == 6
    flops = Result(raw_result(bytes_moved=None, flops=3e9))
    assert flops.rate("ours") == pytest.approx((5e11, "FLOP", 0.5))


def test_losses_and_gaps_stand_beside_wins():
    text = tables.report([Result(raw_result())])
    assert "| some_case | won? | 0.500 (0.500 to 0.545) | at most 0.600 | yes |" in text
    assert "| some_case | lost? | 2.909 (2.583 to 3.000) | at most 1.000 | no |" in text
    assert "| some_case | half | 1.000 (1.000 to 1.091) | at most 1.200 | yes |" in text
    assert "| some_case | memory | 0.500 | at most 0.600 | yes |" in text
    assert "| asked in vain | - (elsewhere: needs a GPU)" in text
    assert "| **ours** | 6 ms (5 to 7) | 0.500 (0.500 to 0.545) | 1.0e-06 | 2.0 | 2.0 |" in text
    assert "- elsewhere: needs a GPU" in text
    assert "- wrong: failed: RuntimeError: out of memory\n" in text + "\n"
    assert "mean_depth 6.0" in text
    assert "mean nothing" not in text
    assert "tiny run: its times mean nothing" in tables.report([Result(raw_result(tiny=True))])


def test_a_failed_peer_leaves_a_report():
    failed = {"peer": "RuntimeError: out of memory"}
    seconds = {name: SECONDS[name] for name in ("ours", "slow")}
    text = tables.report([Result(raw_result(failed=failed, seconds=seconds))])
    assert "| **ours** | 6 ms (5 to 7) | - |" in text
    nothing = raw_result(seconds={}, first_call={}, peer=None, ways=[], comparisons=[])
    assert "out of memory" in tables.report([Result(nothing)])


def test_the_report_reads_what_the_runner_writes(tmp_path):
    raw = json.loads(small_run(tmp_path).read_text())
    (result,) = load(tmp_path)
    assert result.rounds == 7
    assert result.seconds("better").median == statistics.median(raw["seconds"]["better"])
    assert "is it better?" in tables.report([result])
    pytest.importorskip("matplotlib")
    (file,) = pictures.draw([result], tmp_path)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no result"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["run", "nowhere"])
def test_a_report_that_cannot_be_written_says_why_in_one_line(name, tmp_path, capsys):
    small_run(tmp_path / "run")
    (tmp_path / "run" / "cut.json").write_text("")
    wanted = {"run": "cut.json is no JSON: ", "nowhere": "nowhere holds no result"}
    assert wanted[name] in refusal(capsys, command.main, tmp_path / name)


def test_a_readme_that_is_not_there_is_said_before_anything_is_written(tmp_path, capsys):
    file = small_run(tmp_path)
    said = refusal(capsys, command.main, tmp_path, "--readme", "nofile.md")
    assert said == "benchmarks.report: --readme is 'nofile.md', which is no file\n"
    assert list(tmp_path.iterdir()) == [file]


def test_json_of_others_is_left_out(tmp_path):
    small_run(tmp_path)
    (tmp_path / "number.json").write_text("5")
    (tmp_path / "other.json").write_text('{"case": "no samples"}')
    assert [result.name for result in load(tmp_path)] == ["small"]


def test_a_result_that_was_changed_is_refused(tmp_path, capsys):
    file = small_run(tmp_path)
    raw = json.loads(file.read_text())
    raw["seconds"]["better"] = [seconds / 2 for seconds in raw["seconds"]["better"]]
    file.write_text(json.dumps(raw))
    said = refusal(capsys, command.main, tmp_path)
    assert f"{file} was changed after it was written: its checksum does not fit" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": {"peer": [1.0], "ours": []}}, "its ways differ in their samples' number"),
        ({"seconds": {"peer": [1.0], "ours": [0.0]}}, "or some are no times"),
        ({"environment": None}, "is no whole result: it lacks environment"),
    ],
)
def test_what_is_no_whole_result_is_refused(change, message, tmp_path, capsys):
    raw = {key: value for key, value in raw_result(**change).items() if value is not None}
    (tmp_path / "some_case.json").write_text(json.dumps(raw))
    assert message in refusal(capsys, command.main, tmp_path)


def test_results_are_in_the_order_of_their_batches(tmp_path):
    for batch in (1024, 16, 1, 256):
        raw = raw_result(case=f"b{batch}")
        (tmp_path / f"exit_b{batch}.json").write_text(json.dumps(raw))
    assert [result.raw["case"] for result in load(tmp_path)] == ["b1", "b16", "b256", "b1024"]


def marked(name: str, inside: str) -> str:
    return f"before\n\n{readme.begin(name)}\n{inside}\n{readme.END}\n\nafter \\1\n"


def test_the_readme_is_rewritten_between_its_markers(tmp_path):
    file, folder, other = tmp_path / "README.md", tmp_path / "run", marked("another", "kept")
    file.write_text(marked("run", "old | 12 ms") + other)
    results = [Result(raw_result(what=r"odd \1 words"))]
    for _ in range(2):  # the second time finds what the first one wrote
        readme.rewrite(file, folder, results)
        text = file.read_text()
        assert text == marked("run", readme.figures(results)) + other
    assert "old" not in text and r"odd \1 words" in text
    assert "| ours, 6 ms | peer, 11 ms | 0.500 (0.500 to 0.545) |" in text
    assert "| slow, 32 ms | peer, 11 ms | 2.909" in text
    assert "| ours, 6 ms | 0.500 of peer, 11 ms | 1.000" in text
    assert "| ours, 2 MiB kept | slow, 4 MiB kept | 0.500 |" in text


@pytest.mark.parametrize("text", ["no markers", marked("other", "x"), 2 * marked("run", "x")])
def test_a_readme_without_its_markers_stays(tmp_path, text):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ValueError, match="figures: run"):
        readme.rewrite(file, tmp_path / "run", [Result(raw_result())])
    assert file.read_text() == text


@pytest.mark.parametrize("flag", ["tiny", "quick"])
def test_a_readme_takes_no_times_that_mean_nothing(flag, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(marked("run", "old"))
    results = [Result(raw_result()), Result(raw_result(**{flag: True}))]
    with pytest.raises(ValueError, match="holds a tiny or quick run"):
        readme.rewrite(file, tmp_path / "run", results)
    assert file.read_text() == marked("run", "old")


def test_the_figures_of_our_readme_are_those_of_the_files():
    text = (ROOT / "README.md").read_text()
    folders = [folder for folder in (ROOT / "benchmarks/results").iterdir() if folder.is_dir()]
    shown = [folder for folder in folders if readme.begin(folder.name) in text]
    assert shown
    for folder in shown:
        inside = text.split(readme.begin(folder.name) + "\n")[1].split("\n" + readme.END)[0]
        assert inside == readme.figures(load(folder))
