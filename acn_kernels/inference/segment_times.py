"""What a cut network and early exit take on this machine, from measured times of the segments."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from torch import Tensor

from acn_kernels.inference.early_exit import EarlyExit
from acn_kernels.models import ImageClassifier
from acn_kernels.modes import in_eval_mode
from acn_kernels.timing import interleaved_seconds

_ROUNDS = 9


def expected_seconds(
    model: ImageClassifier,
    inputs: Tensor,
    depth: int,
    exits: Sequence[int],
    leaving: Sequence[float],
) -> dict[str, float]:
    """Seconds for one sample: of the "full" and the "truncated" network measured on ``inputs``, of
    "early exit" expected.

    Args:
        depth: of the truncated network. exits: of early exit, in order.
        leaving: [L+1], the share of samples that stop at each depth.
    """
    layers = len(model.blocks)
    # Cut networks run the way that early exit does, in the engine or outside: they are its
    # segments, added up. Exits that nobody takes show what deciding costs.
    cut = {k: EarlyExit(model.truncate(k), [], 0.0) for k in {*exits, depth, layers}}
    ways = {k: lambda way=way: way(inputs) for k, way in cut.items()}
    deciding = EarlyExit(model, exits, 0.0)
    ways["deciding"] = lambda: deciding(inputs)
    with in_eval_mode(model):
        samples = interleaved_seconds(ways, _ROUNDS, inputs.device)
    medians = {k: statistics.median(times) / len(inputs) for k, times in samples.items()}
    decision = max(medians["deciding"] - medians[layers], 0.0) / max(len(exits), 1)
    early = sum(
        leaving[k] * (medians[k] + decision * sum(e < k for e in exits))
        for k in (*exits, layers)
    )  # fmt: skip
    return {"full": medians[layers], "truncated": medians[depth], "early exit": early}
