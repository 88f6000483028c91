"""The throughput benchmark: sound cases, honest files, commands that do what they say."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import refusal
from small_case import TINY, small_case, small_run
from torch import nn

from acn_kernels.blocks import MixerBlock, TransformerBlock
from acn_kernels.blocks.mlp import Mlp
from acn_kernels.connection import Connection
from acn_kernels.timing import interleaved_seconds
from benchmarks.throughput import __main__ as command
from benchmarks.throughput import check, peers, runner
from benchmarks.throughput.case import COPY_CEILING, FASTEST_PEER, Case, Missing, Setting, Ways
from benchmarks.throughput.check import problems
from benchmarks.throughput.exits import entropy, first_exit, threshold_for
from benchmarks.throughput.measures import counted_flops, kept_bytes, relative_error
from benchmarks.throughput.networks import plainly
from benchmarks.throughput.runner import Clock, Plan, measure, run
from benchmarks.throughput.steps import Step
from benchmarks.throughput.suites import SUITES

ROOT = Path(__file__).parents[1]
CASES = {case.name: case for case in SUITES["all"]}


# --- the cases


def test_the_suites_of_the_command_line():
    assert set(SUITES) == {"smoke", "cpu", "kernels", "train", "infer", "exit", "gpt9x512", "all"}
    names = [case.name for case in SUITES["all"]]
    assert len(names) == len(set(names)) == sum(len(SUITES[key]) for key in SUITES if key != "all")
    assert all(name.isidentifier() for name in names)  # they become file names


@pytest.mark.parametrize("name", CASES)
def test_a_case_asks_about_ways_that_it_has(name):
    ways = CASES[name].build(TINY)
    assert ways.what
    assert name == "kernel_copy" or any(entry.ours for entry in ways.entries.values())
    for entry in ways.entries.values():
        assert entry.like is None or entry.like in ways.entries
    for comparison in ways.comparisons:
        assert comparison.way in ways.entries
        assert comparison.against in (*ways.entries, COPY_CEILING, FASTEST_PEER)
    if "kernel" not in name:
        assert ways.comparisons


def test_the_targets_are_those_of_a_gpu():
    """On a CPU the targets are the 2 % of the cpu suite and those of the engine."""
    for case in SUITES["all"]:
        aims = {comparison.at_most for comparison in case.build(TINY).comparisons}
        expected = {1.02} if case.name.startswith("cpu") else set()
        if case.name.startswith("exit_mixer_cifar_b"):
            expected = {1.0, 1 / 0.95}
        assert aims - {None} == expected


@pytest.mark.parametrize(
    "name", ["train_vit_base", "train_mixer_cifar", "train_mixer_small", "train_mlp128",
             "infer_vit_base_6_of_12", "infer_mixer_cifar_b512", "exit_mixer_cifar_mean6",
             "kernel_connections", "kernel_join_forward", "cpu_step_vit_tiny"],
)  # fmt: skip
def test_our_ways_compute_what_their_peers_compute(name):
    result = measure(CASES[name], TINY, Plan(quick=True, ours_only=True))
    assert not result["failed"]
    errors = [facts["relative_error"] for facts in result["first_call"].values()]
    compared = [error for error in errors if error is not None]
    assert len(compared) > 1 and max(compared) < 1e-5


@pytest.mark.parametrize(
    "block",
    [TransformerBlock(16, 2), MixerBlock(4, 16, 8, 32), MixerBlock(4, 16, 8, 32, closing=True)],
    ids=["transformer", "mixer", "closing"],
)
def test_a_peer_waits_for_no_code_of_ours(block, monkeypatch):
    x = torch.randn(2, 4, 16)
    expected = block(x)
    monkeypatch.setattr(Connection, "begin", lambda _: pytest.fail("the package's Python ran"))
    monkeypatch.setattr(Mlp, "forward", lambda *_: pytest.fail("the package's Python ran"))
    torch.testing.assert_close(plainly(block, x), expected)


def test_entropy_and_first_exit_by_hand():
    assert entropy(torch.zeros(2, 8)).tolist() == pytest.approx(2 * [math.log(8)])
    assert entropy(torch.tensor([[200.0, 0.0]])).tolist() == pytest.approx([0.0])
    certainty = torch.tensor([[0.0, 0.0], [0.9, 0.2], [0.3, 0.9], [0.9, 0.9]])
    assert first_exit(certainty, [1, 2], 0.5).tolist() == [2, 1]
    assert first_exit(certainty, [1, 2], 0.25).tolist() == [3, 1]


def test_the_threshold_gives_the_mean_depth_asked_for():
    certainty, exits = torch.rand(9, 400), range(1, 8)
    for wanted in (2, 4, 7.5):
        threshold = threshold_for(certainty, exits, wanted)
        assert first_exit(certainty, exits, threshold).double().mean().sub(wanted).abs() < 0.1
    nobody_differs = threshold_for(torch.ones(9, 4), exits, 1)
    assert first_exit(torch.ones(9, 4), exits, nobody_differs).tolist() == 4 * [1]


# --- what is measured


def raising(error: Exception, after: int = 0):
    calls = 0

    def call() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return torch.full((8,), 2.0)

    return call


def test_every_way_has_every_sample_and_its_facts():
    result = measure(small_case(), TINY)
    assert {name: len(samples) for name, samples in result["seconds"].items()} == {
        "plain": 7,
        "better": 7,
    }
    assert result["peer"] == "plain" and result["ours"] == ["better"]
    assert result["first_call"]["better"]["relative_error"] == 0
    assert result["first_call"]["better"]["like"] == "plain"


def test_a_way_that_raises_is_recorded_and_the_others_go_on():
    case = small_case(
        broken=raising(torch.OutOfMemoryError("out of memory")),
        absent=raising(Missing("there is no such package")),
        unsteady=raising(ValueError("only later"), after=4),
    )
    result = measure(case, TINY)
    assert set(result["seconds"]) == {"plain", "better"}
    assert all(len(samples) == 7 for samples in result["seconds"].values())
    assert result["missing"] == {"absent": "there is no such package"}
    assert set(result["failed"]) == {"broken", "unsteady"}
    assert "out of memory" in result["failed"]["broken"]
    assert result["failed"]["unsteady"] == "ValueError: only later"


def test_peers_that_cannot_run_here_say_why(monkeypatch):
    network, x, cpu = nn.Linear(4, 4), torch.randn(2, 4), Setting("cpu")
    with pytest.raises(Missing, match="tunes for GPUs"):
        peers.compiled(network, cpu, "max-autotune")(x)
    with pytest.raises(Missing, match="need a GPU"):
        peers.graphed(network, x, cpu)()
    with pytest.raises(Missing, match="no_such_runtime cannot be imported"):
        peers.imported("no_such_runtime.session")
    with monkeypatch.context() as patch:
        patch.setattr(peers.shutil, "which", lambda name: None)
        with pytest.raises(Missing, match=r"needs a C\+\+ compiler"):
            peers.compiled(network, cpu)(x)
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    with pytest.raises(Missing, match="switched off"):
        peers.compiled(network, cpu)(x)


def test_a_network_is_deployed_with_its_weights_packed_once(monkeypatch):
    network, x, given = nn.Linear(4, 4), torch.randn(2, 4), {}
    inductor = torch._inductor
    monkeypatch.setattr(peers, "_require_compiler", lambda _: None)
    monkeypatch.setattr(inductor, "aoti_compile_and_package", lambda _, **how: given.update(how))
    monkeypatch.setattr(inductor, "aoti_load_package", lambda _: network)
    assert peers.ahead_of_time(network, x, Setting("cpu"))().equal(network(x))
    assert given["inductor_configs"] == {"freezing": True}


def test_memory_of_a_replayed_graph_is_not_compared():
    step = Step(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), *torch.randn(2, 3, 4))

    def build(setting: Setting) -> Ways:
        ways = Ways("steps")
        ways.add("eager", step)
        ways.add("replayed", step, graphed=True)
        return ways

    facts = measure(Case("steps", build), TINY, Plan(quick=True))["first_call"]
    assert facts["eager"]["kept_bytes"] > 0
    assert facts["replayed"]["kept_bytes"] is None


def test_a_wrong_answer_is_a_failure_however_fast():
    case = small_case(
        shape=lambda: torch.ones(3),
        value=lambda: torch.full((8,), 2.01),
        nan=lambda: torch.ones(8) / 0 * 0,
        rounded=lambda: torch.full((8,), 2.001),
    )
    result = measure(case, TINY)
    assert set(result["failed"]) == {"shape", "value", "nan"}
    assert "its value differs by 0.005 of that of plain" in result["failed"]["value"]
    assert set(result["seconds"]) == set(result["first_call"]) == {"plain", "better", "rounded"}
    assert result["first_call"]["rounded"]["relative_error"] == pytest.approx(0.0005, rel=0.01)


def test_a_case_that_cannot_be_built_does_not_end_the_run(tmp_path):
    def build(setting: Setting) -> Ways:
        raise torch.OutOfMemoryError("no room for the inputs")

    assert run([Case("unbuilt", build), small_case()], tmp_path, TINY) == []
    unbuilt, small = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("unbuilt", "small")
    )
    assert "no room" in unbuilt["failed"]["building the case"]
    assert len(small["seconds"]) == 2


def test_the_first_peer_alone_stays_beside_ours():
    case = small_case(other=lambda: torch.full((8,), 2.0))
    assert list(measure(case, TINY, Plan(ours_only=True))["seconds"]) == ["plain", "better"]


def test_a_spent_budget_leaves_cases_and_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "elapsed", 61.0)
    cases = [small_case()]
    assert run(cases, tmp_path, TINY, Plan(budget=100.0)) == ["small"]
    assert run(cases, tmp_path, TINY, Plan(budget=1000.0)) == []


def test_ways_past_the_budget_are_missing_and_measured_by_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "spent", lambda self, share=1.0: share == 1.0)
    run([small_case()], tmp_path, TINY, Plan(budget=1.0, resume=True))
    file = tmp_path / "small.json"
    assert json.loads(file.read_text())["seconds"] == {}
    monkeypatch.undo()
    run([small_case()], tmp_path, TINY, Plan(resume=True))
    assert len(json.loads(file.read_text())["seconds"]) == 2


@pytest.mark.parametrize("fact", ["sources", "extension", "triton", "peers", "gpus", "threads"])
def test_a_resumed_run_keeps_what_the_same_code_measured(fact, tmp_path, monkeypatch):
    run([small_case()], tmp_path, TINY)
    before = (tmp_path / "small.json").read_text()
    run([small_case()], tmp_path, TINY, Plan(resume=True))
    assert (tmp_path / "small.json").read_text() == before
    facts = runner.environment()
    monkeypatch.setattr(runner, "environment", lambda: {**facts, fact: "another"})
    run([small_case()], tmp_path, TINY, Plan(resume=True))
    assert json.loads((tmp_path / "small.json").read_text())["environment"][fact] == "another"


@pytest.mark.parametrize(
    "lacking", [Plan(quick=True), Plan(brief=True), Plan(ours_only=True)], ids=repr
)
def test_a_resumed_run_measures_again_what_lacked_rounds_or_peers(lacking, tmp_path):
    file = tmp_path / "small.json"
    run([small_case()], tmp_path, TINY, lacking)
    before = file.read_text()
    run([small_case()], tmp_path, TINY, replace(lacking, resume=True))
    assert file.read_text() == before
    run([small_case()], tmp_path, TINY, Plan(resume=True))
    assert file.read_text() != before


def test_a_resumed_run_measures_again_what_failed(tmp_path):
    file = tmp_path / "small.json"
    run([small_case()], tmp_path, TINY)
    result = json.loads(file.read_text())
    file.write_text(json.dumps({**result, "failed": {"ours": "RuntimeError"}}))
    run([small_case()], tmp_path, TINY, Plan(resume=True))
    assert json.loads(file.read_text())["failed"] == {}


@pytest.mark.parametrize(
    ("left", "each", "rounds"), [(100, 1, 41), (20, 1, 20), (1, 1, 5), (-3, 1, 5), (100, 0, 41)]
)
def test_rounds_fit_the_budget_but_suffice_for_quartiles(monkeypatch, left, each, rounds):
    monkeypatch.setattr(Clock, "elapsed", 1000.0 - left)
    assert Clock(1000.0).rounds_within(41, each) == rounds
    assert Clock(None).rounds_within(41, each) == 41


def test_what_runs_before_a_sample_is_not_timed():
    ticks = []
    samples = interleaved_seconds(
        {"way": lambda: ticks.append("way")}, 3, warmup=0, before=lambda: ticks.append("before")
    )
    assert ticks == 3 * ["before", "way"] and len(samples["way"]) == 3


def test_short_ways_are_called_until_a_sample_is_long_enough():
    calls = []

    def way():
        calls.append(time.perf_counter())
        time.sleep(0.004)

    (seconds,) = interleaved_seconds({"way": way}, 1, warmup=0, least=0.03)["way"]
    assert 2 <= len(calls) <= 8
    assert seconds >= 0.004 and seconds * len(calls) >= 0.03


def test_flops_of_a_training_step_by_hand():
    network, x = nn.Linear(16, 32), torch.randn(8, 16)
    step = Step(network, x, torch.randn(8, 32))
    assert counted_flops(step) == 3 * 2 * 8 * 16 * 32  # y, dx, dW
    q = torch.randn(2, 4, 8, 16)
    attended = counted_flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert attended == 2 * (2 * 4 * 8 * 8 * 16 * 2)


@pytest.mark.parametrize("name", ["train_vit_base", "train_mixer_small", "infer_vit_base_6_of_12"])
def test_a_rate_is_told_of_those_alone_who_do_the_work(name):
    ways = CASES[name].build(TINY)
    flops = {
        way: counted_flops(entry.call)
        for way, entry in ways.entries.items()
        if not way.endswith(("compiled", "max-autotune", "AOTInductor", "ONNX Runtime"))
    }
    peers = next(iter(flops.values()))
    assert all((flops[way] == peers) == ways.entries[way].same_work for way in flops)


def test_kept_bytes_by_hand():
    """exp keeps its output; the input and the weights were there before."""

    class TwoExps(nn.Module):
        def forward(self, x):
            return (x * 2).exp().exp()

    x = torch.randn(10, 4)
    assert kept_bytes(Step(TwoExps(), x, x), TINY) == 2 * x.nbytes
    assert kept_bytes(Step(nn.Linear(4, 4), x, x), TINY) == x.nbytes, "its output alone"
    assert kept_bytes(lambda: x, TINY) is None


def test_relative_error():
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, math.nan]), truth) == math.inf


# --- the check


def test_a_sound_run_has_no_problems(tmp_path):
    small_run(tmp_path)
    assert problems([small_case()], tmp_path) == []


def spoil_samples(raw):
    raw["seconds"]["better"].pop()


def spoil_error(raw):
    raw["first_call"]["better"]["relative_error"] = math.inf


def spoil_way(raw):
    del raw["seconds"]["better"]


def spoil_ceilings(raw):
    del raw["ceilings"]


def fail_a_way(raw):
    raw["failed"]["better"] = "RuntimeError: illegal memory access"


@pytest.mark.parametrize(
    "spoil", [spoil_samples, spoil_error, spoil_way, spoil_ceilings, fail_a_way]
)
def test_the_check_finds(tmp_path, spoil):
    file = small_run(tmp_path)
    raw = json.loads(file.read_text())
    spoil(raw)
    file.write_text(json.dumps(raw))
    assert len(problems([small_case()], tmp_path)) == 1


def test_the_check_finds_a_file_that_is_not_there(tmp_path):
    assert "no file" in problems([small_case()], tmp_path)[0]
    (tmp_path / "small.json").write_text('{"case": ')
    assert "no JSON" in problems([small_case()], tmp_path)[0]


@pytest.mark.parametrize("text", ["[]", '{"failed": 5}', '{"case": "small", "seconds": {}}'])
def test_the_check_refuses_what_is_no_result_and_a_resumed_run_measures_anew(text, tmp_path):
    file = tmp_path / "small.json"
    file.write_text(text)
    assert problems([small_case()], tmp_path) == [
        f"small: {file} is no result of benchmarks.throughput"
    ]
    run([small_case()], tmp_path, TINY, Plan(resume=True))
    assert problems([small_case()], tmp_path) == []


# --- the commands


def test_the_command_tells_which_way_failed(tmp_path, monkeypatch, capsys):
    wrong = small_case(wrong=lambda: torch.ones(8))
    monkeypatch.setitem(SUITES, "smoke", (wrong,))
    given = ["--suite", "smoke", "--tiny", "--out", str(tmp_path)]
    assert command.main(given) == 1
    assert capsys.readouterr().err.startswith("small: wrong failed: ValueError: its value differs")
    monkeypatch.setattr(Clock, "elapsed", 100.0)
    assert command.main([*given, "--budget", "100"]) == 3
    assert "left for another run with --resume: small" in capsys.readouterr().out


def test_the_command_runs_named_cases(tmp_path, capsys):
    arguments = ["--suite", "kernels", "--tiny", "--quick", "--out", str(tmp_path)]
    assert command.main([*arguments, "--case", "kernel_copy"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["kernel_copy.json"]
    said = refusal(capsys, command.main, *arguments, "--case", "kernel_copies")
    assert "no case kernel_copies; the suite has kernel_copy" in said
    given = [tmp_path, "--suite", "kernels", "--case", "kernel_copies"]
    assert "no case kernel_copies; the suite has" in refusal(capsys, check.main, *given)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "blah", "device is 'blah'; it takes cpu, cuda"),
        ("--device", f"cuda:{torch.cuda.device_count()}", "device is 'cuda:"),
        ("--budget", "nan", "--budget is nan; it takes a number of seconds"),
        ("--budget", "inf", "--budget is inf; it takes a number of seconds"),
        ("--budget", "-1", "--budget is -1.0; it takes a number of seconds"),
        ("--out", "/proc", "--out: no file can be written into '/proc': "),
        ("--out", __file__, f"--out: no file can be written into {__file__!r}: "),
    ],
)
def test_what_cannot_be_followed_is_said_before_anything_is_measured(
    option, value, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("it ran"))
    given = ["--suite", "smoke", "--out", tmp_path]
    assert message in refusal(capsys, command.main, *given, option, value)
