"""calibrate: where to cut and when to leave, for a quality bound that holds on fresh data too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from acn_kernels.inference.choice import Drop, choose
from acn_kernels.inference.early_exit import EarlyExit
from acn_kernels.inference.probe import check_probed, probe_logits
from acn_kernels.inference.segment_times import expected_seconds
from acn_kernels.models import ImageClassifier
from acn_kernels.text_table import text_table

_EXITS = 8  # by default exits divide the depth into so many parts


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found.

    depth: layers to keep; ``acn.truncate(model, c.depth)``. threshold: entropy in nats at
    ``exits``; ``acn.EarlyExit(model, c.exits, c.threshold)``. mean_depth: layers that samples then
    go through on average. seconds: for one sample in a batch of ``batch``, of the "full", the
    "truncated" and the "early exit" network: the first two measured here, the last one expected
    from the measured times of the segments between exits and from who leaves at each. Where few
    samples are left in a batch each costs more, so that early exit itself takes somewhat longer.
    """

    max_drop: float
    samples: int
    depth: int
    full_depth: int
    drop: Drop
    exits: tuple[int, ...]
    threshold: float
    exit_drop: Drop
    mean_depth: float
    batch: int
    seconds: dict[str, float]

    def speed_up(self, way: str) -> float:
        """Of "truncated" or "early exit" over the full network, in time on this machine."""
        return self.seconds["full"] / self.seconds[way]

    def __str__(self) -> str:
        ways = {
            "full": (str(self.full_depth), "", ""),
            "truncated": (str(self.depth), "", str(self.drop)),
            "early exit": (f"{self.mean_depth:.2f}", f"{self.threshold:.3f}", str(self.exit_drop)),
        }
        columns = ["layers", "threshold", "drop (95 %)", "us a sample", "speed-up"]
        rows = {
            way: [*cells, f"{1e6 * self.seconds[way]:.1f}", f"{self.speed_up(way):.2f}"]
            for way, cells in ways.items()
        }
        title = (
            f"at most {100 * self.max_drop:g} points below the full network on fresh data, in 19 "
            f"of 20 cases; {self.samples} samples, batches of {self.batch}, exits at "
            f"{', '.join(map(str, self.exits))}"
        )
        return text_table(title, columns, rows)


def calibrate(
    model: ImageClassifier,
    data: Iterable[tuple[Tensor, Tensor]],
    max_drop: float = 0.005,
    exits: Sequence[int] | None = None,
) -> Calibration:
    """The cutoff depth and the exit threshold of ``model`` for a quality bound, and their speed.

    In 19 of 20 calibration sets, both keep the accuracy on fresh data of the same kind within
    ``max_drop`` of the full network's.

    Args:
        data: batches (inputs, labels) that the model was not trained on; the first one with
            a sample in it is what times are measured on.
        max_drop: of accuracy, in (0, 1]; 0.005 is half a point.
        exits: depths in [1, L-1] at which samples may leave; None: at every eighth of the depth.

    Raises:
        TypeError: the model is no image classifier of :mod:`acn_kernels.models`.
        ValueError: an argument is out of range; the full network's logits hold NaN; or ``data`` is
            too small to show such a bound, and the message says how many samples it takes.
    """
    check_probed(model)
    batches = list(data)
    layers = len(model.blocks)
    if exits is None:
        exits = sorted({round(layers * part / _EXITS) for part in range(1, _EXITS)} - {0, layers})
    exits = EarlyExit(model, exits, 0.0).exits  # checked and in order
    logits, labels = probe_logits(model, batches)
    choice = choose(logits, labels, exits, max_drop)
    leaving = choice.exit_depths.bincount(minlength=layers + 1).double() / len(labels)
    inputs = next(inputs for inputs, _ in batches if len(inputs))
    return Calibration(
        max_drop=max_drop,
        samples=len(labels),
        depth=choice.depth,
        full_depth=layers,
        drop=choice.depth_drop,
        exits=choice.exits,
        threshold=choice.threshold,
        exit_drop=choice.threshold_drop,
        mean_depth=choice.exit_depths.double().mean().item(),
        batch=len(inputs),
        seconds=expected_seconds(model, inputs, choice.depth, exits, leaving.tolist()),
    )
