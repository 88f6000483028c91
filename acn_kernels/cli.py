"""The command ``acn-kernels``."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from acn_kernels import __version__
from acn_kernels.analysis.command import add_probe_arguments, add_truncate_arguments
from acn_kernels.files import check_elsewhere
from acn_kernels.training.command import add_arguments as add_train_arguments
from acn_kernels.validation import check_depth

_PURPOSE = "Trains, measures, cuts and exports auto-compressing networks."

# Optional modules and the extra that brings each.
_EXTRAS = {
    "PIL": "train",
    "accelerate": "train",
    "matplotlib": "demo",
    "onnxscript": "onnx",
    "sklearn": "demo",
}


def parser() -> argparse.ArgumentParser:
    """The command line; every subcommand sets ``run``."""
    parser = argparse.ArgumentParser(prog="acn-kernels", description=_PURPOSE)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="train an ACN and its residual twin on real digits, cut it, time it"
    )
    demo.add_argument("--seeds", type=int, default=1, help="repeat; mean and spread are shown")
    demo.add_argument("--epochs", type=int, default=24, help="of each network (24)")
    demo.add_argument(
        "--max-drop", type=float, default=0.01, help="accuracy that cutting may cost (0.01)"
    )
    demo.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="where files are left")
    demo.add_argument("--json", action="store_true", help="print JSON")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="versions, what was found, which paths work")
    doctor.add_argument(
        "--compile",
        metavar="TARGETS",
        type=lambda text: text.split(","),
        help="compile every Triton kernel ahead of time for sm_80,sm_89,sm_90,sm_100 (or some)",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

    probe = commands.add_parser("probe", help="accuracy, contribution and cost by depth")
    add_probe_arguments(probe)
    truncate = commands.add_parser("truncate", help="cut a model at a depth, or find the depth")
    add_truncate_arguments(truncate)

    export = commands.add_parser(
        "export", help="write a model for the C++ runtime and acn_infer, or as ONNX"
    )
    export.add_argument("model", metavar="MODEL", help="a folder that save_pretrained wrote")
    export.add_argument("folder", metavar="DIR", help="where config and weights go")
    export.add_argument("--depth", type=int, metavar="K", help="keep the first K layers (all)")
    export.add_argument("--dtype", default="fp32", help="fp32 (default) or bf16")
    export.add_argument(
        "--aot", action="store_true", help="also compile the layers by AOTInductor, for --exits"
    )
    export.add_argument(
        "--exits",
        type=_depths,
        metavar="K,K",
        help="with --aot: the depths between which it compiles (none: all layers as one)",
    )
    export.add_argument(
        "--onnx", action="store_true", help="write model.onnx instead, of any wiring, in fp32"
    )
    export.set_defaults(run=_export)

    train = commands.add_parser("train", help="train a classifier; on many processes by torchrun")
    add_train_arguments(train)

    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns its exit status.

    Without ``argv`` the process is the command's own, and SIGTERM ends it as Ctrl-C does: an end by
    the signal itself would leave the temporary files of what is being written.
    """
    if argv is None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"acn-kernels {arguments.command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name)
        if extra is None:
            raise
        print(f"{error}; pip install 'acn-kernels[{extra}]' brings it", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _depths(text: str) -> list[int]:
    try:
        return [int(k) for k in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it takes depths, as in 2,4") from None


def _demo(arguments: argparse.Namespace) -> int:
    from acn_kernels.demo.main import run_demo

    return run_demo(
        arguments.out,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        max_drop=arguments.max_drop,
        device=arguments.device,
        as_json=arguments.json,
    )


def _doctor(arguments: argparse.Namespace) -> int:
    from acn_kernels import doctor

    return doctor.main(arguments.compile, arguments.json)


def _export(arguments: argparse.Namespace) -> int:
    from acn_kernels.inference import export, export_onnx
    from acn_kernels.inference.programs import ONNX_FILE
    from acn_kernels.models import Model

    check_elsewhere(arguments.folder, arguments.model)
    if arguments.onnx:
        if arguments.aot or arguments.exits is not None or arguments.dtype != "fp32":
            raise ValueError("--onnx goes with --depth alone")
        path = Path(arguments.folder) / ONNX_FILE
        export_onnx(Model.from_pretrained(arguments.model), path, arguments.depth)
        print(path)
        return 0
    if arguments.exits is not None and not arguments.aot:
        raise ValueError("--exits goes with --aot; without it a call may name any")
    model = _saved_bert(arguments.model) or Model.from_pretrained(arguments.model)
    layers = check_depth(arguments.depth, len(model.blocks), True, "--depth")
    for k in arguments.exits or []:
        if not 0 < k < layers:
            raise ValueError(
                f"--exits holds {k}; it takes depths above 0 and below {layers}, the layers"
            )
    exits = (arguments.exits or []) if arguments.aot else None
    export(model, arguments.folder, arguments.depth, arguments.dtype, exits)
    print(f"{arguments.folder}: {getattr(model, 'family', 'bert')}, {arguments.dtype}")
    return 0


def _saved_bert(folder: str) -> nn.Module | None:
    from acn_kernels.inference.engine_text import saved_bert

    try:
        return saved_bert(folder)
    except ImportError as error:  # transformers is missing, too old or broken
        why = str(error.__cause__ or error).strip().split("\n")[0]
        raise ValueError(
            "MODEL is an ACN BERT, which needs a working transformers, as pip install "
            f"'acn-kernels[transformers]' brings it: {why}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
