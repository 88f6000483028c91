"""``acn-kernels probe`` and ``acn-kernels truncate``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from acn_kernels import analysis
from acn_kernels.files import check_elsewhere, check_writable
from acn_kernels.inference import calibrate, truncate
from acn_kernels.models import ImageClassifier, Model
from acn_kernels.models.base import CONFIG_FILE, read_configuration
from acn_kernels.text_table import text_table
from acn_kernels.training.data import ImageData, load_images
from acn_kernels.validation import check_depth, check_device


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_and_data(parser, required=True)
    parser.add_argument("--linear", action="store_true", help="also fit a classifier at each depth")
    parser.add_argument("--picture", metavar="FILE", help="draw accuracy by depth into a PNG file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_probe)


def add_truncate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_and_data(parser, required=False)
    parser.add_argument("folder", metavar="DIR", help="where the cut model goes")
    parser.add_argument(
        "--depth", type=int, metavar="K", help="keep the first K layers; in the place of --data"
    )
    parser.add_argument(
        "--max-drop", type=float, metavar="SHARE",
        help="with --data: keep as few layers as cost at most this of accuracy, on fresh data too "
        "(0.005)",
    )  # fmt: skip
    parser.set_defaults(run=run_truncate)


def _add_model_and_data(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder that save_pretrained wrote")
    parser.add_argument(
        "--data", required=required, metavar="SOURCE",
        help='"digits", or what `acn-kernels train` reads; its test images are used',
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, default=256, metavar="SIZE", help="images at a time (256)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")


def run_probe(arguments: argparse.Namespace) -> int:
    """Prints, by depth, how good each sub-network is and what it costs."""
    if arguments.picture is not None:
        _check_picture(Path(arguments.picture))
    model = _model(arguments)
    data = _data(arguments, model)
    size, channels = model.config.image_size, model.config.channels
    costs = analysis.costs(model, torch.zeros(1, channels, size, size, device=arguments.device))
    curves = analysis.shared_head(model, _batches(data.test, arguments))
    if arguments.linear:
        parts = (_batches(part, arguments) for part in (data.train, data.test))
        linear = analysis.linear_probes(model, *parts)
        curves = dataclasses.replace(curves, values={**curves.values, **linear.values})
    _print_curves(curves, costs, len(data.test), arguments.json)
    if arguments.picture is not None:
        curves.draw(arguments.picture)
    return 0


def _print_curves(
    curves: analysis.Curves, costs: analysis.Costs, samples: int, as_json: bool
) -> None:
    accuracy = curves["shared head"]
    gained = analysis.contributions(accuracy).tolist()
    if as_json:
        print(json.dumps({
            "samples": samples,
            **{name: values.tolist() for name, values in curves.values.items()},
            "contributions": gained,
            "effective_depth": analysis.effective_depth(accuracy).item(),
            "parameters": costs.parameters.tolist(),
            "flops": costs.flops.tolist(),
        }, indent=1))  # fmt: skip
        return
    rows = {
        name: [f"{100 * v:.2f}" for v in values.tolist()] for name, values in curves.values.items()
    }
    rows["contribution"] = ["", *(f"{100 * v:+.2f}" for v in gained)]
    columns = [str(k) for k in curves.x]
    print(text_table(f"accuracy by depth, %, on {samples} samples", columns, rows))
    print(f"effective depth: {analysis.effective_depth(accuracy).item():.2f} layers\n\n{costs}")


def run_truncate(arguments: argparse.Namespace) -> int:
    """Cuts the model at a depth, or where ``calibrate`` says, and saves it."""
    if (arguments.depth is None) == (arguments.data is None):
        raise ValueError("it takes --depth, or --data to find the depth on: one of them")
    if arguments.depth is not None and arguments.max_drop is not None:
        raise ValueError("--max-drop goes with --data; --depth is the depth itself")
    check_elsewhere(arguments.folder, arguments.model)
    check_writable(arguments.folder, "DIR")
    model, depth = _model(arguments), arguments.depth
    if depth is not None:
        check_depth(depth, len(model.blocks), True, "--depth")
    else:
        data = _data(arguments, model)
        bound = {} if arguments.max_drop is None else {"max_drop": arguments.max_drop}
        found = calibrate(model, _batches(data.test, arguments), **bound)
        print(found)
        depth = found.depth
    truncate(model, depth).save_pretrained(arguments.folder)
    print(f"{arguments.folder}: the first {depth} of {len(model.blocks)} layers")
    return 0


def _check_picture(path: Path) -> None:
    """Raises, before anything is measured, where it could not be drawn."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise ValueError(
            f"--picture is {str(path)!r}; it takes a name that ends in .{', .'.join(sorted(kinds))}"
        )
    if path.is_dir():
        raise ValueError(f"--picture is {str(path)!r}, a folder; it takes a file")
    check_writable(path.parent, "--picture")


def _model(arguments: argparse.Namespace) -> ImageClassifier:
    config = read_configuration(Path(arguments.model) / CONFIG_FILE)
    kind = config.get("family", config.get("model_type"))  # the latter is how transformers says it
    if kind not in Model.families:
        raise ValueError(
            f"MODEL is of the family {kind!r}; acn-kernels {arguments.command} takes image "
            f"classifiers: {', '.join(Model.families)}"
        )
    model = Model.from_pretrained(arguments.model)
    return model.to(check_device(arguments.device)).eval()


def _data(arguments: argparse.Namespace, model: ImageClassifier) -> ImageData:
    data = load_images(arguments.data, model.config.image_size, model.config.channels)
    if len(data.classes) != model.config.classes:
        raise ValueError(
            f"--data has {len(data.classes)} classes; the model tells {model.config.classes} apart"
        )
    return data


def _batches(samples, arguments: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    if arguments.batch < 1:
        raise ValueError(f"--batch is {arguments.batch}; it takes a number of at least 1")
    for positions in torch.arange(len(samples)).split(arguments.batch):
        images, labels = samples[positions]
        yield images.to(arguments.device), labels.to(arguments.device)
