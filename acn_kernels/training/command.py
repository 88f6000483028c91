"""The command ``acn-kernels train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.models.base import WIRINGS


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", required=True, metavar="DIR",
        help="a folder with one .npz of JPEG streams or train/CLASS/ and test/CLASS/; or: digits",
    )  # fmt: skip
    command.add_argument("--model", required=True, metavar="PRESET", help="acn_vit_digits, ...")
    command.add_argument("--depth", type=int, metavar="L", help="layers (the preset's)")
    command.add_argument("--wiring", default="acn", help=f"acn (default), {', '.join(WIRINGS[1:])}")
    command.add_argument(
        "--alpha", metavar="START:END:FRACTION",
        help="of an ACN, over the first FRACTION of the training: 0:1:0.5; or one number (1)",
    )  # fmt: skip
    command.add_argument(
        "--grow", action="store_true",
        help="at first the lower half of the layers alone, all of them from half-time on",
    )  # fmt: skip
    command.add_argument(
        "--loss", default="final",
        help="final (default), or shared-head: of every sub-network, for early exit",
    )  # fmt: skip
    command.add_argument("--epochs", type=int, default=10, help="passes over the images (10)")
    command.add_argument(
        "--batch-size", type=int, default=64, help="images of a step, on all processes (64)"
    )
    command.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (0.001)")
    command.add_argument("--seed", type=int, default=0, help="of weights, order and noise (0)")
    command.add_argument(
        "--save-every", type=int, default=0, metavar="STEPS",
        help="checkpoints within an epoch too (0: at its end alone)",
    )  # fmt: skip
    command.add_argument(
        "--out", default="runs/train", metavar="DIR", help="log, checkpoint, model"
    )
    command.add_argument("--resume", action="store_true", help="go on with the run in --out")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from acn_kernels.training.recipe import Recipe, train

    recipe = Recipe(
        data=arguments.data,
        model=arguments.model,
        depth=arguments.depth,
        wiring=arguments.wiring,
        alpha=None if arguments.alpha is None else AlphaSchedule.parse(arguments.alpha),
        grow=arguments.grow,
        loss=arguments.loss,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        seed=arguments.seed,
        save_every=arguments.save_every,
    )
    train(recipe, Path(arguments.out), arguments.resume)
    return 0
