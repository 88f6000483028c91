"""``acn-kernels train``: what it computes; a run killed anywhere goes on to the same bits."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.cli import main
from acn_kernels.models import Model, create
from acn_kernels.training import recipe
from acn_kernels.training.batches import Share, ShuffledBatches, generator_of
from acn_kernels.training.digits import load_digits
from acn_kernels.training.schedules import warmup_cosine

pytest.importorskip("accelerate", reason="the recipe stands on accelerate")
pytest.importorskip("sklearn", reason="the recipe is tested on scikit-learn's digits")

ROOT = Path(__file__).parents[1]
COMMAND = ["--data", "digits", "--model", "acn_mixer_digits", "--depth", "2", "--epochs", "2",
           "--batch-size", "128", "--alpha", "0:1:0.5", "--seed", "3"]  # fmt: skip
STEPS_PER_EPOCH = 1000 // 128


def train(out: Path, *more: str) -> int:
    return main(["train", *COMMAND, "--out", str(out), *more])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return Model.from_pretrained(out / "model").state_dict()


def log(out: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((out / "log.csv").open(newline=""))
    return [{name: float(value) for name, value in row.items()} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train(out) == 0
    torch.set_num_threads(threads)
    return out


def test_the_log_has_the_accuracy_of_every_sub_network(uninterrupted):
    model, test = Model.from_pretrained(uninterrupted / "model"), load_digits().test
    with torch.no_grad():
        for k in range(3):
            right = (model(test.images, depth=k).argmax(-1) == test.labels).double().mean()
            assert log(uninterrupted)[-1][f"accuracy_{k}"] == pytest.approx(right.item())


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from acn_kernels.cli import main
from acn_kernels.training import checkpoint, recipe

def die_at(owner, name, call, first=None):
    inner, calls = getattr(owner, name), []
    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            if first is not None:
                first(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **kwargs)
    setattr(owner, name, counted)

{die}
sys.exit(main(sys.argv[1:]))
"""
DEATHS = {
    "in the middle of an epoch": "die_at(recipe._Run, '_update', 11)",
    "before the first checkpoint": "die_at(recipe._Run, '_update', 2)",
    "while a checkpoint is written": (
        "die_at(torch, 'save', 3, lambda _, path: path.write_bytes(b'half of the'))"
    ),
    "between an epoch and its row": "die_at(recipe._Run, '_row', 1)",
    "between the last checkpoint and its log": "die_at(recipe._Run, '_write_log', 2)",
}


def test_sigterm_leaves_no_temporary_file(tmp_path):
    out = tmp_path / "out"
    die = DEATHS["while a checkpoint is written"]
    code = KILLED.format(die=die).replace("SIGKILL", "SIGTERM").replace("sys.argv[1:]", "")
    done = run(code, "train", *COMMAND, "--save-every", "3", "--out", str(out))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert os.listdir(out) == ["checkpoint.pt"]


def test_a_program_that_calls_the_command_keeps_its_own_handler(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert train(tmp_path, "--epochs", "0") == 2
    assert signal.getsignal(signal.SIGTERM) is before


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


QUICK = ("in the middle of an epoch", "while a checkpoint is written")


@pytest.mark.parametrize(
    "death", [d if d in QUICK else pytest.param(d, marks=pytest.mark.slow) for d in DEATHS]
)
def test_killed_and_resumed_gives_the_same_bits(death, uninterrupted, tmp_path):
    out = tmp_path / "out"
    arguments = ["train", *COMMAND, "--save-every", "3", "--out", str(out)]
    done = run(KILLED.format(die=DEATHS[death]), *arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (out / "model").exists()
    assert train(out, "--save-every", "3", "--resume") == 0
    assert_same_run(out, uninterrupted)


def assert_same_run(out: Path, other: Path) -> None:
    for (name, got), truth in zip(weights(out).items(), weights(other).values(), strict=True):
        assert torch.equal(got, truth), name
    for row, truth in zip(log(out), log(other), strict=True):
        assert row | {"seconds": 0} == truth | {"seconds": 0}


def test_resuming_a_finished_run_changes_nothing(uninterrupted, tmp_path):
    before = weights(uninterrupted)
    assert train(uninterrupted, "--resume") == 0
    assert all(torch.equal(w, before[name]) for name, w in weights(uninterrupted).items())


def torchrun(code: str, out: Path, *more: str, seconds: float = 300) -> subprocess.CompletedProcess:
    script = out.parent / "script.py"
    script.write_text(code)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
        str(script), "train", *COMMAND, "--save-every", "3", "--out", str(out), *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                   "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)


MAIN = "import sys; from acn_kernels.cli import main; sys.exit(main(sys.argv[1:]))"
# AdamW divides by the root of the gradient's square, so that where a gradient is next to nothing
# its rounding moves a weight: what is compared with other than itself is computed in fp64.
DOUBLE = """
import torch
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
from acn_kernels.training import digits
single = digits.load_digits
digits.load_digits = lambda: digits.Digits(
    *(digits.Split(part.images.double(), part.labels) for part in single())
)
"""


def double_weights(out: Path) -> dict[str, torch.Tensor]:
    found = torch.load(out / "checkpoint.pt")["model"]
    assert all(weight.dtype == torch.float64 for weight in found.values())
    return found


def run_in_double(out: Path, *more: str) -> Path:
    done = run(DOUBLE + MAIN, "train", *COMMAND, *more, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def in_double(tmp_path_factory) -> Path:
    return run_in_double(tmp_path_factory.mktemp("double") / "out")


def double_model() -> Model:
    torch.set_default_dtype(torch.float64)
    try:
        return create("acn_mixer_digits", depth=2)
    finally:
        torch.set_default_dtype(torch.float32)


def final_loss(model: Model, images, labels, progress: float) -> torch.Tensor:
    return F.cross_entropy(model(images), labels)


def shared_head_loss(model: Model, images, labels, progress: float) -> torch.Tensor:
    """Of two layers: weights 2 k / (L (L + 1)) of the sub-networks k."""
    first, second = (F.cross_entropy(model(images, depth=k), labels) for k in (1, 2))
    return first / 3 + second * 2 / 3


def test_it_is_the_loop_one_would_write(in_double):
    assert_same_as_loop(in_double, final_loss)


def test_it_is_the_loop_with_the_loss_of_every_sub_network(tmp_path):
    assert_same_as_loop(run_in_double(tmp_path, "--loss", "shared-head"), shared_head_loss)


def test_it_is_the_loop_that_grows(tmp_path):
    """Of two layers one, for a quarter of the training: from half the layers to three quarters."""

    def loss_of(model, images, labels, progress):
        return F.cross_entropy(model(images, depth=1 if progress < 0.25 else 2), labels)

    assert_same_as_loop(run_in_double(tmp_path, "--grow"), loss_of)


def assert_same_as_loop(out: Path, loss_of) -> None:
    """The same batches in double precision: AdamW, warm-up and cosine, alpha from 0 to 1."""
    digits, total = load_digits().train, 2 * STEPS_PER_EPOCH
    torch.manual_seed(3)
    model = double_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    losses = []
    for epoch in range(2):
        order = torch.randperm(1000, generator=generator_of(3, epoch))
        for i in range(STEPS_PER_EPOCH):
            step, batch = len(losses), order[128 * i : 128 * (i + 1)]
            optimizer.param_groups[0]["lr"] = 1e-3 * (
                1.0 if step == 0 else (1 + math.cos(math.pi * (step - 1) / (total - 1))) / 2
            )
            model.blocks.alpha = min(1.0, step / total / 0.5)
            loss = loss_of(model, digits.images[batch].double(), digits.labels[batch], step / total)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    for name, got in double_weights(out).items():
        assert_close(got, model.state_dict()[name], roundings=1e3, among=1.0, name=name)
    rows = log(out)
    assert [row["step"] for row in rows] == [STEPS_PER_EPOCH, total]
    assert [row["alpha"] for row in rows] == [1.0, 1.0]
    for row, part in zip(rows, (losses[:STEPS_PER_EPOCH], losses[STEPS_PER_EPOCH:]), strict=True):
        assert row["loss"] == pytest.approx(sum(part) / STEPS_PER_EPOCH, abs=1e-9)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two") / "out"
    done = torchrun(DOUBLE + MAIN, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out / "model")]
    return out


def test_two_processes_train_as_one(two_processes, in_double):
    truth = double_weights(in_double)
    for name, got in double_weights(two_processes).items():
        torch.testing.assert_close(got, truth[name], rtol=1e-6, atol=1e-6)
    for row, other in zip(log(two_processes), log(in_double), strict=True):
        for name in set(row) - {"seconds"}:
            assert row[name] == pytest.approx(other[name], abs=1e-6), name


@pytest.mark.slow
def test_two_processes_killed_and_resumed_give_the_same_bits(two_processes, tmp_path):
    out = tmp_path / "out"
    done = torchrun(DOUBLE + KILLED.format(die="die_at(recipe._Run, '_update', 11)"), out)
    assert done.returncode != 0 and not (out / "model").exists()
    done = torchrun(DOUBLE + MAIN, out, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(out, two_processes)


@pytest.mark.slow
def test_one_failing_process_ends_all(tmp_path):
    fail = "die_at(recipe._Run, '_update', 4)"
    code = KILLED.format(die=f"if os.environ['RANK'] == '1':\n    {fail}")
    started = time.monotonic()
    done = torchrun(code, tmp_path / "out", seconds=120)
    assert done.returncode != 0
    assert time.monotonic() - started < 60


def test_batches_are_shared_out_whole():
    whole = ShuffledBatches(23, 6, seed=1, epoch=2, start=0, share=Share())
    assert len(whole) == 3 and len(set(torch.cat(list(whole)).tolist())) == 18
    late = ShuffledBatches(23, 6, seed=1, epoch=2, start=1, share=Share())
    assert torch.equal(torch.stack(list(late)), torch.stack(list(whole))[1:])
    parts = [list(ShuffledBatches(23, 6, 1, 2, 0, Share(rank, 2))) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(batch.tolist()) == sorted([*first.tolist(), *second.tolist()])
    other = ShuffledBatches(23, 6, seed=1, epoch=3, start=0, share=Share())
    assert not torch.equal(other.batches, whole.batches)


def test_warmup_and_cosine():
    factors = [warmup_cosine(step, 4, 20) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[12] == pytest.approx(0.5) and 0 < factors[-1] < 0.02


def test_alpha_schedules():
    schedule = AlphaSchedule.parse("0:0.8:0.5")
    assert [schedule.at(t) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.4, 0.8, 0.8])
    assert {AlphaSchedule.parse("0.5").at(t) for t in (0.0, 0.3, 1.0)} == {0.5}
    assert AlphaSchedule.parse("0:1:0").at(0.0) == 1.0


def test_an_alpha_between_the_ends_is_saved_with_the_model(tmp_path):
    assert train(tmp_path, "--epochs", "1", "--alpha", "0:0.8:0.5") == 0
    model = Model.from_pretrained(tmp_path / "model")
    assert model.blocks.alpha == 0.8 and log(tmp_path)[-1]["alpha"] == 0.8
    assert model.truncate(1).blocks.alpha == 0.8


def test_a_finished_run_that_is_resumed_keeps_its_alpha(tmp_path):
    arguments = ["--data", "digits", "--model", "acn_mixer_digits", "--depth", "1",
                 "--epochs", "1", "--batch-size", "500", "--alpha", "0:0.5:0.5"]  # fmt: skip
    for more in ([], ["--resume"]):
        assert main(["train", *arguments, "--out", str(tmp_path), *more]) == 0
        assert Model.from_pretrained(tmp_path / "model").blocks.alpha == 0.5


def test_bfloat16_by_accelerates_own_switch(tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(True)
    try:
        assert train(tmp_path, "--epochs", "1") == 0
    finally:
        AcceleratorState._reset_state(True)
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path).values())
    assert math.isfinite(log(tmp_path)[0]["loss"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--alpha", "0:1"], "alpha is '0:1'"),
        (["--alpha", "0:2:0.5"], "alpha is 2"),
        (["--alpha", "0:1:2"], "fraction of the schedule is 2"),
        (["--wiring", "residual"], "alpha is set and wiring is 'residual'"),
        (["--model", "resnet"], "model is 'resnet'"),
        (["--data", "/nowhere"], "data is '/nowhere'"),
        (["--data", "digits", "--model", "acn_vit_tiny_patch4_cifar"], "data is 'digits'"),
        (["--batch-size", "2000"], "batch_size is 2000"),
        (["--epochs", "0"], "epochs is 0"),
        (["--depth", "0"], "depth is 0"),
        (["--loss", "all"], "loss is 'all'"),
        (["--lr", "nan"], "lr is nan"),
        (["--lr", "inf"], "lr is inf; it takes a finite number of at least 0"),
    ],
)
def test_bad_settings(more, message, tmp_path, capsys):
    assert train(tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_written_is_seen_before_the_training(tmp_path, capsys, monkeypatch):
    (tmp_path / "afile").write_text("")
    monkeypatch.setattr(recipe, "load_images", lambda *_: pytest.fail("it began to read images"))
    for out in (tmp_path / "afile", tmp_path / "afile" / "sub", Path("/proc/foo")):
        assert train(out) == 2
        assert "--out: no file can be written into" in capsys.readouterr().err


def test_a_run_is_not_mixed_with_another(uninterrupted, tmp_path, capsys):
    assert train(uninterrupted) == 2
    assert "holds a run" in capsys.readouterr().err
    assert train(uninterrupted, "--resume", "--lr", "0.1") == 2
    assert "lr is 0.1; the run in" in capsys.readouterr().err
    (tmp_path / "checkpoint.pt").write_bytes(b"PK half a file")
    assert train(tmp_path, "--resume") == 2
    assert "is no checkpoint" in capsys.readouterr().err


def test_a_run_keeps_its_number_of_processes(two_processes, capsys):
    assert train(two_processes, "--resume") == 2
    assert "there are 1 processes; the run in" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_a_model_in_parts_is_refused(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    assert train(tmp_path / "out") == 2
    assert "accelerate is set up for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_accelerate_the_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert train(tmp_path) == 2
    assert "acn-kernels[train]" in capsys.readouterr().err
