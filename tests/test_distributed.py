"""Two gloo processes: the gradients that every way of sharing a step gives are those of one."""

from __future__ import annotations

import functools

import pytest
from processes import PROCESSES, results_of
from strategies import CASES, COMPILED_CASES, VARIANTS, gradients_by_case, one_process
from tolerances import assert_close


def in_processes(cases, tmp_path_factory) -> list:
    """The gradients by process and case; one pair of processes for all of them."""
    work = functools.partial(gradients_by_case, cases)
    return results_of(work, tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_processes(CASES, tmp_path_factory)


@pytest.fixture(scope="module")
def found_compiled(tmp_path_factory):
    return in_processes(COMPILED_CASES, tmp_path_factory)


@pytest.fixture(scope="module")
def truth():
    return {variant: one_process(variant) for variant in VARIANTS}


def assert_as_one_process(found, truth, case):
    for rank in range(PROCESSES):
        gradients = found[rank][case]
        assert gradients.keys() == truth[case[1]].keys()
        for name, true in truth[case[1]].items():
            assert_close(gradients[name], true, name=f"{name} in process {rank}", among=0.01)


@pytest.mark.parametrize("case", CASES, ids=" | ".join)
def test_gradients_are_those_of_one_process(found, truth, case):
    assert_as_one_process(found, truth, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED_CASES, ids=" | ".join)
def test_compiled_gradients_are_those_of_one_process(found_compiled, truth, case):
    assert_as_one_process(found_compiled, truth, case)


def test_the_cases_have_gradients_to_compare(truth):
    for gradients in truth.values():
        assert sum(float(g.abs().sum()) for g in gradients.values()) > 0.1
