"""Every experiment runs, small, on real digits; results are sealed; verdicts are by hand."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from acn_kernels.analysis import Curves, costs
from acn_kernels.models import create
from acn_kernels.training.digits import Split
from acn_kernels.training.schedules import DepthSchedule
from benchmarks.paper import continual, exits, measures, records, report, runner, trained
from benchmarks.paper.altered import mirrored_and_shifted
from benchmarks.paper.experiments import EXPERIMENTS, NOT_RUN, cheaper
from benchmarks.paper.spec import PRESETS, Row
from benchmarks.paper.trained import Context, OutOfTime
from benchmarks.paper.verdicts import judge

pytest.importorskip("sklearn", reason="the smoke preset trains on scikit-learn's digits")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Shared by the experiments, as networks are."""
    return tmp_path_factory.mktemp("work")


def settings(work, out, **changes) -> runner.Settings:
    return runner.Settings(**{"preset": "smoke", "seeds": 1, "out": out, "work": work, **changes})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_on_digits(name, work, tmp_path):
    outcome = runner.run([name], settings(work, tmp_path))
    assert not outcome.failed and not outcome.left
    (result,) = records.read_all(tmp_path / "smoke")
    experiment = EXPERIMENTS[name]
    assert set(result["runs"]) == set(experiment.plan("smoke").trainings)
    for row in experiment.rows:
        for network in (row.of, row.against):
            value = result["runs"][network]["0"][row.metric]
            never = value is None and row.metric == "seconds_to_reach"
            assert never or (isinstance(value, (int, float)) and not math.isinf(value))
    text = report.markdown({name: result})
    assert experiment.title in text and "not the paper's settings" in text
    assert all(what in text for what in NOT_RUN)
    if experiment.draw is not None and importlib.util.find_spec("matplotlib"):
        report.pictures({name: result}, tmp_path)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_training_learns_and_resumes_where_time_ran_out(tmp_path):
    training = EXPERIMENTS["fig1_2"].plan("smoke").trainings["residual"]
    whole = Context(tmp_path / "whole", seed=0).trained(training)
    late = Context(tmp_path / "parts", seed=0, deadline=0.0)
    for _ in range(training.recipe.epochs - 1):
        with pytest.raises(OutOfTime):
            late.trained(training)
    again = late.trained(training)
    assert again.train_loss == whole.train_loss and len(again.train_loss) == training.recipe.epochs
    assert again.train_loss[-1] < again.train_loss[0]
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.stack(again.gradient_norms), torch.stack(whole.gradient_norms))


def test_tasks_that_are_done_are_kept_where_time_ran_out(tmp_path, monkeypatch):
    plan = EXPERIMENTS["table3_cifar10"].plan("smoke")
    given = plan.trainings["ACN, SI"], plan.options["tasks"], plan.options["strength"]
    whole = continual.learn(Context(tmp_path / "whole", seed=0), *given)
    over = [False, True, *[False] * len(plan.options["tasks"])]
    monkeypatch.setattr(Context, "is_over", property(lambda _: over.pop(0)))
    parts = Context(tmp_path / "parts", seed=0)
    with pytest.raises(OutOfTime):
        continual.learn(parts, *given)
    assert continual.learn(parts, *given) == whole
    assert len(over) == 1  # the first task was not trained again


def test_what_is_done_is_kept_and_what_is_left_is_said(work, tmp_path, capsys, monkeypatch):
    late = settings(work, tmp_path / "late", deadline=0.0)
    outcome = runner.run(["table4"], settings(tmp_path, tmp_path / "late", deadline=0.0))
    assert len(outcome.left) == 3 and not (tmp_path / "late").exists()
    runner.run(["table2"], settings(work, tmp_path))
    monkeypatch.setattr(runner, "_run_unit", lambda unit: pytest.fail("ran again"))
    assert not runner.run(["table2"], late).left
    assert "kept as it is" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_in_two_processes_give_the_same(work, tmp_path):
    runner.run(["fig6"], settings(work, tmp_path / "one"))
    runner.run(["fig6"], settings(tmp_path / "work", tmp_path / "two", jobs=2))
    one, two = (records.read_all(tmp_path / side / "smoke")[0] for side in ("one", "two"))
    assert one["runs"] == two["runs"]


def test_data_that_the_folder_lacks_fails_with_its_reason(tmp_path, capsys):
    lacking = settings(tmp_path, tmp_path, preset="small", data_dir=str(tmp_path))
    outcome = runner.run(["table3_cifar100_5"], lacking)
    assert len(outcome.absent) == 4 and not outcome.failed
    assert "the data folder lacks" in capsys.readouterr().err


def sealed(**changes):
    return {"experiment": "fig6", "environment": {"sources": "abc", "commit": "1"}, **changes}


def test_an_edited_result_is_refused(tmp_path):
    file = tmp_path / "fig6.json"
    records.write(file, sealed(runs={"ACN": {"0": {"accuracy": 0.5}}}))
    assert records.read_all(tmp_path, "abc")[0]["experiment"] == "fig6"
    file.write_text(file.read_text().replace("0.5", "0.6"))
    with pytest.raises(records.Refused, match="was changed after it was written"):
        records.read_all(tmp_path, "abc")
    file.write_text(json.dumps({"experiment": "fig6"}))
    with pytest.raises(records.Refused, match="is no result"):
        records.read_all(tmp_path, "abc")


def test_a_result_of_another_commit_is_refused(tmp_path):
    records.write(tmp_path / "fig6.json", sealed())
    with pytest.raises(records.Refused, match="measured with other code, at commit 1"):
        records.read_all(tmp_path)


@pytest.mark.parametrize(
    ("sign", "paper", "ours", "word"),
    [
        (1, (92.0, 90.0), (0.60, 0.50), "better"),
        (1, (92.0, 90.0), (0.51, 0.50), "same"),
        (1, (92.0, 90.0), (0.50, 0.51), "worse"),
        (-1, (46.0, 52.0), (0.20, 0.30), "better"),
        (-1, None, (0.20, 0.30), "same"),
        (-1, None, (0.30, 0.30), "none"),
        (1, (92.0, 90.0), (0.1 + 0.2, 0.3), "none"),  # apart by the last bit
        (0, None, (0.1 + 0.2, 0.3), "same"),
        (0, (70.7, 70.8), (0.495, 0.50), "same"),
        (0, (70.7, 70.8), (0.48, 0.50), "worse"),
    ],
)
def test_verdicts_by_hand(sign, paper, ours, word):
    row = Row("", "accuracy", "a", "b", sign, paper, 100)
    runs = {name: {"0": {"accuracy": value}} for name, value in zip("ab", ours, strict=True)}
    verdict = judge(row, runs)
    assert verdict.word == word
    assert verdict.difference == pytest.approx(100 * (ours[0] - ours[1]))
    assert verdict.spread is None


@pytest.mark.parametrize(
    ("sign", "differences", "word"),
    [
        (1, (1.0, 3.0), "same"),  # 2 +- 1.41
        (1, (0.0, 2.0), "unclear"),  # 1 +- 1.41
        (1, (-0.5, 0.5), "unclear"),
        (-1, (1.0, 3.0), "worse"),
        (-1, (0.0, 2.0), "unclear"),
        (1, (0.0, 0.0), "none"),
        (0, (0.1, -0.1), "same"),  # 0 +- 0.14
        (0, (-2.0, 2.0), "unclear"),
        (0, (-1.2, -1.4), "worse"),  # below by more than a point in any case
        (0, (-1.5, -0.9), "unclear"),
        (0, (2.0, 2.2), "better"),
        (0, (0.9, 1.5), "same"),  # 1.2 +- 0.42: no worse in any case, no better in some
    ],
)
def test_a_difference_within_its_spread_is_unclear(sign, differences, word):
    row = Row("", "x", "a", "b", sign)
    runs = {
        "a": {str(i): {"x": 30.0 + d} for i, d in enumerate(differences)},
        "b": {str(i): {"x": 30.0} for i in range(len(differences))},
    }
    assert judge(row, runs).word == word


def test_rounding_is_no_difference():
    """Means that differ in the last bits, as those of equal accuracies do."""
    row = Row("", "x", "a", "b", 1, None, 100)
    runs = {
        "a": {"0": {"x": 0.308}, "1": {"x": 0.276}, "2": {"x": 0.1 + 0.2}},
        "b": {"0": {"x": 0.276}, "1": {"x": 0.308}, "2": {"x": 0.3}},
    }
    verdict = judge(row, runs)
    assert verdict.difference == 0 and verdict.word == "unclear"
    values = {"a": (0.3, 0.1 + 0.2), "b": (0.1 + 0.2, 0.3)}
    runs = {name: {str(i): {"x": x} for i, x in enumerate(two)} for name, two in values.items()}
    same = judge(row, runs)
    assert (same.difference, same.spread, same.word) == (0, 0, "none")


def test_spread_is_over_the_seeds_that_both_have():
    row = Row("", "x", "a", "b", 1)
    runs = {
        "a": {"0": {"x": 3.0}, "1": {"x": 5.0}, "2": {"x": 9.0}},
        "b": {"0": {"x": 1.0}, "1": {"x": 1.0}, "3": {"x": 0.0}, "2": {"x": math.nan}},
    }
    verdict = judge(row, runs)
    assert (verdict.ours, verdict.other, verdict.difference) == (4.0, 1.0, 3.0)
    assert verdict.spread == pytest.approx(math.sqrt(2))
    assert judge(row, {}).word == "not run"
    # What was never reached, while the other network reached it, is no gain.
    never = judge(row, {"a": {"0": {"x": None}}, "b": {"0": {"x": 1.0}}})
    assert (never.word, never.compared, never.seeds) == ("worse", 0, 1)
    runs["a"]["1"]["x"] = None
    once = judge(row, runs)
    assert (once.word, once.compared, once.seeds) == ("unclear", 1, 2)


def test_report_gives_a_row_one_number_of_decimals():
    row = Row("", "x", "a", "b", 0, (70.76, 70.74), 100)
    runs = {"a": {"0": {"x": 0.25}, "1": {"x": 0.26}}, "b": {"0": {"x": 0.3}, "1": {"x": 0.26}}}
    text = report.rows([judge(row, runs)])
    assert "25.50 against 28.00 | -2.50 ± 3.54 | 70.76 against 70.74: +0.02 | equal" in text
    loss = Row("", "x", "a", "b", -1)
    one_seed = judge(loss, {"a": {"0": {"x": 1.25}}, "b": {"0": {"x": 0.5}}})
    assert "1.250 against 0.500 | +0.750 | -" in report.rows([one_seed])
    runs = {"a": {"0": {"x": 3.0}, "1": {"x": None}}, "b": {"0": {"x": 5.0}, "1": {"x": 5.0}}}
    assert "3.000 against 5.000 (in 1 of 2 seeds) | -2.000 |" in report.rows([judge(loss, runs)])
    runs["a"]["0"]["x"] = None
    assert "never in 2 seeds | - |" in report.rows([judge(loss, runs)])


def test_early_exit_counts_flops_by_hand(tmp_path):
    """Two samples leave at the first exit, two stay: from the depths and the counted FLOPs."""
    training = EXPERIMENTS["table7"].plan("smoke").trainings["ACN, shared head"]
    kept = Context(tmp_path, 0).trained(training)
    data = Context(tmp_path, 0).data(training.data).test
    config = kept.model.config
    tokens, width = config.tokens, config.width
    layer = 4 * tokens * width * (config.token_mlp + config.channel_mlp)
    stem, head = 2 * tokens * width * config.patch_size**2, 2 * width * config.classes
    spent, full = exits.flops_spent(kept.model, data, torch.tensor([1, 1, 4, 4]), [1, 2, 3])
    assert full == stem + head + 4 * layer
    first, last = stem + head + layer, stem + 4 * layer + 4 * head
    assert spent == pytest.approx((first + last) / 2)
    everybody = exits.early_exit(kept, data, tau=100.0, drop=0.05)
    assert everybody["mean_depth"] == 1
    assert everybody["flops_speedup"] == pytest.approx(full / first)
    nobody = exits.early_exit(kept, data, tau=0.0, drop=0.05)
    assert nobody["mean_depth"] == 4 and nobody["exit_accuracy"] == nobody["accuracy"]
    assert nobody["accuracy_by_threshold"][0] == nobody["accuracy"]  # never
    assert nobody["accuracy_by_threshold"][-1] == everybody["exit_accuracy"]  # at once
    assert nobody["flops_speedup_by_threshold"][-1] == everybody["flops_speedup"]
    assert len(nobody["seconds_by_threshold"]) == len(exits.THRESHOLDS)


def test_what_leaving_early_loses_by_hand():
    """The one exit is sure, and right about half of the samples."""
    labels = torch.zeros(8, dtype=torch.long)
    sure = torch.tensor([9.0, -9.0])
    logits = torch.stack([torch.stack([sure] * 4 + [-sure] * 4), torch.stack([sure] * 8)])
    model = create("acn_mixer_digits", depth=2, classes=2)
    found = exits._Left(model, Split(torch.zeros(8, 1, 8, 8), labels), [1], logits)
    assert found.depth(0.0).tolist() == [2] * 8 and found.depth(3.0).tolist() == [1] * 8
    assert found.at(3.0)["exit_accuracy"] == 0.5 and found.at(3.0)["accuracy"] == 1.0


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_name_networks_that_there_are(preset):
    experiments = [e for e in EXPERIMENTS.values() if preset in e.presets]
    assert experiments
    for experiment in experiments:
        networks = experiment.plan(preset).trainings
        everything = set(experiment.plan("smoke").trainings)  # that is tested
        left_out = everything - set(networks)
        assert set(networks) <= everything
        assert not left_out or (experiment.name == "cheaper" and preset in cheaper.LEFT_OUT)
        assert all({row.of, row.against} <= everything for row in experiment.rows)
        assert all(training.loss in trained.LOSSES for training in networks.values())


def test_altered_images_are_mirrored_and_shifted():
    images = torch.arange(2 * 3 * 10 * 8.0).view(2, 3, 10, 8)
    torch.manual_seed(0)
    found = set()
    for _ in range(40):
        for image, altered in zip(images, mirrored_and_shifted(images), strict=True):
            found.update(ways_from(image, altered))
    assert {mirrored for mirrored, _, _ in found} == {False, True}
    assert {down for _, down, _ in found} == {right for _, _, right in found} == set(range(9))
    torch.manual_seed(0)
    first = mirrored_and_shifted(images)
    torch.manual_seed(0)
    assert mirrored_and_shifted(images).equal(first) and first.dtype == images.dtype
    assert mirrored_and_shifted(images[:0]).shape == (0, 3, 10, 8)


@pytest.mark.gpu
def test_images_are_altered_where_they_are():
    images = torch.rand(8, 3, 32, 32, device="cuda")
    altered = mirrored_and_shifted(images)
    assert altered.device == images.device
    for image, other in zip(images.cpu(), altered.cpu(), strict=True):
        ways_from(image, other)


def ways_from(image, altered):
    """(mirrored, down, right): how ``altered`` came from ``image``; one way at least."""
    ways = [
        (mirrored, down, right)
        for mirrored in (False, True)
        for down in range(9)
        for right in range(9)
        if F.pad(image.flip(-1) if mirrored else image, (4, 4, 4, 4), mode="reflect")[
            :, down : down + image.shape[1], right : right + image.shape[2]
        ].equal(altered)
    ]
    assert ways
    return ways


def test_training_on_altered_images_goes_on_where_it_stopped(tmp_path):
    training = replace(EXPERIMENTS["fig6"].plan("smoke").trainings["ACN"], altered=True)
    whole = Context(tmp_path / "whole", seed=0).trained(training)
    with pytest.raises(OutOfTime):
        Context(tmp_path / "parts", seed=0, deadline=0.0).trained(training)
    parts = Context(tmp_path / "parts", seed=0).trained(training)
    assert parts.train_loss == whole.train_loss
    as_they_are = Context(tmp_path / "whole", seed=0).trained(replace(training, altered=False))
    assert as_they_are.train_loss != whole.train_loss


def test_only_the_network_that_a_training_ends_with_counts():
    ways = EXPERIMENTS["cheaper"].plan("small").trainings
    kept = trained.Trained(None, None, test_accuracy=[0.3, 0.4, 0.5] * 4, seconds=[2.0] * 12)

    def reached(name, accuracy, **changes):
        found = measures.to_reach(replace(ways[name], **changes), kept, accuracy)
        return found["epochs_to_reach"], found["seconds_to_reach"]

    assert reached("ACN", 0.4) == (2, 4.0)
    assert reached("ACN", 0.6) == (None, None)
    # Of ten epochs all layers take part from the sixth on; the fifth ends a step before.
    assert ways["growing"].recipe.epochs == 10
    assert reached("growing", 0.3) == (6, 12.0) and reached("growing", 0.4) == (6, 12.0)
    assert reached("growing", 0.5) == (6, 12.0)
    # Of eight, alpha is where it ends from the fifth on; freezing changes no network.
    assert reached("annealed", 0.3) == (5, 10.0)
    assert reached("annealed from the bottom up", 0.5) == (6, 12.0)
    assert reached("annealed, lower layers freeze", 0.5, alpha=None) == (3, 6.0)
    # At its end every network is as it ends.
    late = DepthSchedule(((0.0, 0.5), (0.99, 1.0)))
    assert reached("growing", 0.3, depth=late) == (10, 20.0)


def test_accuracy_under_noise_leaves_the_clean_images_out(monkeypatch):
    accuracy = {"gaussian": [0.9, 0.8, 0.6, 0.4], "salt and pepper": [0.9, 0.7, 0.5, 0.3]}
    found = {
        name: Curves(name, "level", (0.0, 1.0, 2.0, 3.0), "", {"accuracy": torch.tensor(values)})
        for name, values in accuracy.items()
    }
    monkeypatch.setattr(measures, "_noise", lambda model, data, seed: found)
    assert measures.noisy_accuracy(None, None, 0) == pytest.approx(0.55)


def test_training_flops_follow_the_schedules_by_hand():
    ways = EXPERIMENTS["cheaper"].plan("smoke").trainings
    plain = ways["residual"]
    model = create(plain.model, **dict(plain.changes))
    cost = costs(model, torch.zeros(1, 1, 8, 8)).flops.tolist()
    assert measures.training_flops(plain, 10) == 10 * 3 * 3 * cost[4]  # 3 epochs of 4 layers
    # 4 epochs: two of 4 layers, two of 2.
    lower = ways["annealed, then the lower half"]
    assert measures.training_flops(lower, 10) == 10 * 3 * 2 * (cost[4] + cost[2])
    # 4 epochs: none frozen, none, none, and half of 2 layers.
    frozen = ways["annealed, lower layers freeze"]
    layer = cost[1] - cost[0]
    assert measures.training_flops(frozen, 10) == 10 * (3 * 4 * cost[4] - 2 * layer)
    # Two steps an epoch, of which the third, of eight, is the first of all 4 layers.
    quarter = replace(lower, depth=DepthSchedule(((0.0, 0.5), (0.25, 1.0))))
    samples = 2 * lower.recipe.batch_size
    steps = 2 * cost[2] + 6 * cost[4]
    assert measures.training_flops(quarter, samples) == 3 * lower.recipe.batch_size * steps
    # A teacher of 4 layers looks at every sample too.
    taught = replace(lower, teacher=plain)
    more = measures.training_flops(taught, 10) - measures.training_flops(lower, 10)
    assert more == 10 * 4 * cost[4]
