"""The configurations that are compiled ahead of time, taken from the launchers themselves."""

from __future__ import annotations

from acn_kernels.kernels.cases import exits, linear_stack, mixer_stack, rowwise
from acn_kernels.kernels.cases.case import RegisteredLaunch

FAMILIES = (rowwise, linear_stack, mixer_stack, exits)


def registered_launches() -> dict[str, RegisteredLaunch]:
    """One launch for each kernel and configuration that users meet, by a name that tells both."""
    launches: dict[str, RegisteredLaunch] = {}
    for family in FAMILIES:
        launches |= family.launches()
    return launches
