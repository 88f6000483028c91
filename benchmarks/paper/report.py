"""The tables and pictures of a folder of results: ours beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from acn_kernels import plotting
from acn_kernels.analysis import contributions_over_training
from acn_kernels.files import written_whole
from benchmarks.paper import records
from benchmarks.paper.experiments import EXPERIMENTS, NOT_RUN
from benchmarks.paper.verdicts import Verdict, judge
from benchmarks.report.tables import table

_BY_DEPTH = "accuracy_by_depth"
_LEGEND = (
    "`same`: the difference has the paper's sign; `better`: and at least its size; `worse`: it has "
    "not; `not run`: not measured. Where the paper finds two networks equal, a point of accuracy "
    "decides. The difference is the first network's number minus the "
    "second's, mean ± deviation over the seeds. Absolute numbers are for orientation: the data are "
    "JPEG copies of CIFAR-10."
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
    parts.append(_LEGEND)
    for name, experiment in EXPERIMENTS.items():
        result = results.get(name)
        verdicts = [judge(row, result["runs"] if result else {}) for row in experiment.rows]
        parts += [f"## {experiment.title}", *([experiment.note + "."] if experiment.note else [])]
        if result is not None:
            parts.append(f"{result['seeds']} seeds, {result['seconds']:.0f} s of work.")
        parts.append(rows(verdicts))
        if result is not None and experiment.summary is not None:
            parts.append(experiment.summary(result["runs"]))
        if result is not None and _has_curves(result):
            parts.append(depth_table(result))
    missing = [[what, f"not run: {why}"] for what, why in NOT_RUN.items()]
    parts += ["## Not repeated", table(["experiment", "why"], missing)]
    return "\n\n".join(parts) + "\n"


def rows(verdicts: Sequence[Verdict]) -> str:
    cells = []
    for v in verdicts:
        paper = "-" if v.row.paper is None else (
            f"{v.row.paper[0]:g} - {v.row.paper[1]:g} = {v.paper_difference:+.3g}"
        )  # fmt: skip
        sign = ("equal", "more", "less")[v.row.sign]
        ours = "-" if v.difference is None else (
            f"{v.ours:.4g} - {v.other:.4g} = {v.difference:+.3g} ± {v.spread:.2g}"
        )  # fmt: skip
        compared = f"{v.row.of} against {v.row.against}"
        cells.append([v.row.what, compared, ours, paper, sign, v.word])
    heads = ["what", "networks", "ours", "the paper's", "its sign", "verdict"]
    return table(heads, cells)


def depth_table(result: dict[str, Any]) -> str:
    """Accuracy in %, by network and depth, means over the seeds."""
    means = {
        network: 100 * _over_seeds(seeds, _BY_DEPTH).mean(0)
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
            curves = {n: _over_seeds(seeds, _BY_DEPTH) for n, seeds in result["runs"].items()}
            deepest = max(curve.shape[1] for curve in curves.values())
            alike = {n: c for n, c in curves.items() if c.shape[1] == deepest}
            plotting.lines(
                alike, range(deepest), folder / f"{name}.png", "layers used", "test accuracy", title
            )
        for network, seeds in result["runs"].items():
            first, named = next(iter(seeds.values())), network.replace(" ", "-")
            if "gradient_norms" in first:
                heat = torch.tensor(first["gradient_norms"]).T
                file = folder / f"{name}-gradients-{named}.png"
                plotting.heat_map(heat, file, "epoch", "layer", f"gradient norms, {network}")
            if "accuracy_by_epoch_and_depth" in first:
                grown = contributions_over_training(
                    torch.tensor(first["accuracy_by_epoch_and_depth"])
                )
                grown.draw(folder / f"{name}-contributions-{named}.png")


def _has_curves(result: dict[str, Any]) -> bool:
    return all(
        _BY_DEPTH in metrics for seeds in result["runs"].values() for metrics in seeds.values()
    )


def _over_seeds(seeds: dict[str, Any], key: str) -> torch.Tensor:
    return torch.tensor([metrics[key] for metrics in seeds.values()], dtype=torch.float64)


def _conditions(results: dict[str, dict[str, Any]]) -> str:
    facts = []
    for key in ("processor", "threads", "torch", "commit"):
        values = dict.fromkeys(str(r["environment"].get(key)) for r in results.values())
        facts.append(f"- {key}: {', '.join(values)}")
    devices = dict.fromkeys(r["device"] for r in results.values())
    return "\n".join([f"- device: {', '.join(devices)}", *facts])
