"""What benchmarks.predict counts beside what a run measured."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.predict import Ceilings, Prediction, predictions
from benchmarks.report.results import Result, Spread
from benchmarks.report.tables import ratio_text, table
from benchmarks.throughput.case import Comparison


def beside_measured(results: Sequence[Result]) -> str | None:
    """A row for each prediction, in the words of benchmarks/results/LOG.md; None where the run
    has none of their cases."""
    by_case = {result.name: result for result in results}
    pairs = list(zip(predictions(Ceilings()), predictions(_ceilings(results)), strict=True))
    if not any(prediction.measured.case in by_case for prediction, _ in pairs):
        return None
    rows = []
    for assumed, again in pairs:
        ratio = _measured(assumed, by_case.get(assumed.measured.case))
        rows.append(
            [
                assumed.workload,
                assumed.peer,
                assumed.target,
                f"{assumed.ratio:.2f}",
                f"{again.ratio:.2f}",
                ratio_text(ratio) if ratio else "not measured",
                f"{assumed.measured.case}.json",
            ]
        )
    heads = [
        "workload", "peer", "target", "predicted", "with measured ceilings", "came out", "file",
    ]  # fmt: skip
    return table(heads, rows)


def _ceilings(results: Sequence[Result]) -> Ceilings:
    """The assumed ones, with those that the run measured in their place."""
    found = [result.raw["ceilings"] for result in results if result.raw.get("ceilings")]
    if not found:
        return Ceilings()
    return Ceilings(
        copy=max(each["copy_bytes_per_s"] for each in found),
        matmul=max(each["matmul_flops_per_s"] for each in found),
    )


def _measured(prediction: Prediction, result: Result | None) -> Spread | None:
    """In the prediction's own terms: times faster, or a share."""
    if result is None:
        return None
    _, way, against, of = prediction.measured
    share = result.answer(Comparison("", way, against, of=of))
    if share is None or prediction.at_most:
        return share
    return Spread(1 / share.median, 1 / share.high, 1 / share.low)
