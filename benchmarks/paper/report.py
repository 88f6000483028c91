"""The tables and pictures of a folder of results: ours beside the paper's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from acn_kernels import plotting
from acn_kernels.analysis import contributions_over_training
from acn_kernels.files import written_whole
from benchmarks.paper import records
from benchmarks.paper.experiments import EXPERIMENTS, NOT_RUN
from benchmarks.paper.spec import Experiment, over_seeds
from benchmarks.paper.verdicts import EQUAL, LEGEND, Verdict, judge
from benchmarks.report.tables import table

_BY_DEPTH = "accuracy_by_depth"
_INTRODUCTION = (
    "Every row compares two networks: means over the seeds, and the first minus the second, seed "
    "by seed, as mean ± deviation (the spread). `expected` is the sign that the paper finds, or "
    "where it has no such experiment, the sign aimed at. CIFAR-10 is there as JPEG copies, on "
    "which accuracies are slightly lower."
)


def write(folder: Path) -> str:
    """Writes ``report.md`` into ``folder``, and pictures where matplotlib is there.

    Raises:
        benchmarks.paper.records.Refused: a file was edited, or is of other code.
    """
    results = {result["experiment"]: result for result in records.read_all(folder)}
    text = markdown(results)
    with written_whole(folder / "report.md") as path:
        path.write_text(text)
    try:
        pictures(results, folder)
    except ModuleNotFoundError as error:
        print(f"no pictures: {error}")
    return text


def markdown(results: dict[str, dict[str, Any]]) -> str:
    presets = sorted({result["preset"] for result in results.values()})
    parts = [f"# The paper's experiments, preset {', '.join(presets)}", _conditions(results)]
    if presets != ["paper"]:
        parts.append(
            f"**Preset {', '.join(presets)}: reduced depth, width, samples and epochs; these are "
            "not the paper's settings.**"
        )
    words = "\n".join(f"- `{word}`: {meaning}" for word, meaning in LEGEND.items())
    one_seed = "With one seed there is no spread, and the sign alone decides."
    parts += [_INTRODUCTION, words, f"{EQUAL}. {one_seed}"]
    shown = {n: e for n, e in EXPERIMENTS.items() if set(presets) <= set(e.presets)}
    judged = {name: _judged(experiment, results.get(name)) for name, experiment in shown.items()}
    parts.append(overview(judged))
    for name, experiment in shown.items():
        result, verdicts = results.get(name), judged[name]
        parts.append(f"## {experiment.title}")
        if experiment.note:
            parts.append(f"{experiment.note[0].upper()}{experiment.note[1:]}.")
        if result is not None:
            parts.append(f"{_count(result['seeds'], 'seed')}, {result['seconds']:.0f} s of work.")
        parts.append(rows(verdicts))
        if result is not None and experiment.summary is not None:
            parts.append(experiment.summary(result["runs"]))
        if result is not None and _has_curves(result):
            parts.append(depth_table(result))
    missing = [[what, f"not run: {why}"] for what, why in NOT_RUN.items()]
    parts += ["## Not repeated", table(["experiment", "why"], missing)]
    return "\n\n".join(parts) + "\n"


def _judged(experiment: Experiment, result: dict[str, Any] | None) -> list[Verdict]:
    """Of the networks that the preset trains."""
    if result is None:
        return [judge(row, {}) for row in experiment.rows]
    runs = result["runs"]
    return [judge(row, runs) for row in experiment.rows if {row.of, row.against} <= set(runs)]


def overview(judged: Mapping[str, Sequence[Verdict]]) -> str:
    """How many rows of each experiment came out how."""
    cells = [
        [EXPERIMENTS[name].title, *(str(sum(v.word == word for v in verdicts)) for word in LEGEND)]
        for name, verdicts in judged.items()
    ]
    return table(["rows", *LEGEND], cells)


def rows(verdicts: Sequence[Verdict]) -> str:
    cells = []
    for v in verdicts:
        paper = "-" if v.row.paper is None else (
            f"{v.row.paper[0]:g} against {v.row.paper[1]:g}: {v.paper_difference:+.3g}"
        )  # fmt: skip
        sign = ("equal", "more", "less")[v.row.sign]
        compared = f"{v.row.of} against {v.row.against}"
        cells.append([v.row.what, compared, *_ours(v), paper, sign, v.word])
    heads = ["what", "networks", "ours", "difference", "the paper's", "expected", "verdict"]
    return table(heads, cells)


def _ours(v: Verdict) -> tuple[str, str]:
    """The two numbers and their difference, all with the same decimals: two of percentages and
    points, else what four digits of the larger number leave."""
    if v.difference is None:
        return ("-", "-") if v.word == "not run" else (f"never in {_count(v.seeds, 'seed')}", "-")
    largest = max(abs(v.ours), abs(v.other))
    decimals = 2 if v.row.scale == 100 or not largest else (
        min(max(3 - math.floor(math.log10(largest)), 0), 6)
    )  # fmt: skip
    spread = "" if v.spread is None else f" ± {v.spread:.{decimals}f}"
    part = "" if v.compared == v.seeds else f" (in {v.compared} of {v.seeds} seeds)"
    return (
        f"{v.ours:.{decimals}f} against {v.other:.{decimals}f}{part}",
        f"{v.difference:+.{decimals}f}{spread}",
    )


def depth_table(result: dict[str, Any]) -> str:
    """Accuracy in %, by network and depth, means over the seeds."""
    means = {
        network: 100 * over_seeds(seeds, _BY_DEPTH).mean(0)
        for network, seeds in result["runs"].items()
    }
    most = max(len(mean) for mean in means.values())
    body = [
        [name, *(f"{v:.1f}" for v in mean.tolist()), *[""] * (most - len(mean))]
        for name, mean in means.items()
    ]
    return table(["accuracy by depth, %", *map(str, range(most))], body)


def pictures(results: dict[str, dict[str, Any]], folder: Path) -> None:
    for name, result in results.items():
        title = EXPERIMENTS[name].title
        if _has_curves(result):
            curves = {n: over_seeds(seeds, _BY_DEPTH) for n, seeds in result["runs"].items()}
            deepest = max(curve.shape[1] for curve in curves.values())
            alike = {n: c for n, c in curves.items() if c.shape[1] == deepest}
            plotting.lines(
                alike, range(deepest), folder / f"{name}.png", "layers used", "test accuracy", title
            )
        elif EXPERIMENTS[name].draw is not None:
            EXPERIMENTS[name].draw(result["runs"], folder / f"{name}.png")
        for network, seeds in result["runs"].items():
            first, named = next(iter(seeds.values())), _in_a_file_name(network)
            if "gradient_norms" in first:
                heat = torch.tensor(first["gradient_norms"]).T
                file = folder / f"{name}-gradients-{named}.png"
                plotting.heat_map(heat, file, "epoch", "layer", f"gradient norms, {network}")
            if "accuracy_by_epoch_and_depth" in first:
                grown = contributions_over_training(
                    torch.tensor(first["accuracy_by_epoch_and_depth"])
                )
                grown.draw(folder / f"{name}-contributions-{named}.png")


def _in_a_file_name(network: str) -> str:
    return re.sub(r"[^\w.]+", "-", network)


def _has_curves(result: dict[str, Any]) -> bool:
    return all(
        _BY_DEPTH in metrics for seeds in result["runs"].values() for metrics in seeds.values()
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _conditions(results: dict[str, dict[str, Any]]) -> str:
    facts = []
    for key in ("processor", "threads", "torch", "commit"):
        values = dict.fromkeys(str(r["environment"].get(key)) for r in results.values())
        facts.append(f"- {key}: {', '.join(values)}")
    jobs = dict.fromkeys(str(r["jobs"]) for r in results.values())
    facts.insert(2, f"- networks trained at once, each with so many threads: {', '.join(jobs)}")
    devices = dict.fromkeys(r["device"] for r in results.values())
    if any(device.startswith("cuda") for device in devices):
        facts.append("- matrix products: TF32")
    return "\n".join([f"- device: {', '.join(devices)}", *facts])
