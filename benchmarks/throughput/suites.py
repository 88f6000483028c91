"""The suites: which cases belong together."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from benchmarks.throughput.case import Case, Setting, Ways
from benchmarks.throughput.exits import EXIT_CASES
from benchmarks.throughput.gpt import GPT_9X512_CASES, TRAIN_GPT
from benchmarks.throughput.inference import CPU_INFERENCE, INFER_CASES
from benchmarks.throughput.kernels import KERNEL_CASES
from benchmarks.throughput.steps import CPU_STEPS, TRAIN_STEPS


def _tiny(case: Case) -> Case:
    def build(setting: Setting) -> Ways:
        return case.build(replace(setting, tiny=True))

    return replace(case, name=f"smoke_{case.name}", build=build, rounds=5)


_BY_NAME = {
    case.name: case
    for case in (*KERNEL_CASES, *TRAIN_STEPS, *TRAIN_GPT, *GPT_9X512_CASES, *INFER_CASES,
                 *EXIT_CASES)
}  # fmt: skip
_ONE_OF_EACH = (
    "kernel_fork_backward", "train_vit_base", "train_mixer_cifar", "train_mixer_small",
    "train_mlp128",
    "train_gpt2_small", "gpt9x512_step", "infer_vit_base_6_of_12", "infer_mixer_cifar_b512",
    "infer_mlp128", "exit_mixer_cifar_mean6", "exit_vit_small_mean6",
)  # fmt: skip

SUITES: dict[str, tuple[Case, ...]] = {
    "smoke": tuple(_tiny(_BY_NAME[name]) for name in _ONE_OF_EACH),
    "cpu": (*CPU_STEPS, *CPU_INFERENCE),
    "kernels": KERNEL_CASES,
    "train": (*TRAIN_STEPS[:3], *TRAIN_GPT, *TRAIN_STEPS[3:]),
    "infer": INFER_CASES,
    "exit": EXIT_CASES,
    "gpt9x512": GPT_9X512_CASES,
}
SUITES["all"] = tuple(case for cases in SUITES.values() for case in cases)


def cases_of(suites: Iterable[str], names: Collection[str] | None = None) -> list[Case]:
    """The cases of the suites, each once; those with these names alone, where any are given.

    Raises:
        ValueError: no case of them has such a name.
    """
    cases = {case.name: case for suite in suites for case in SUITES[suite]}
    unknown = sorted(set(names or ()) - set(cases))
    if unknown:
        raise ValueError(f"no case {', '.join(unknown)}; the suite has {', '.join(cases)}")
    return [case for case in cases.values() if not names or case.name in names]
