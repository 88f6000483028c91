"""What every test stands on: Triton interpreted where there is no GPU, poison, a fresh seed."""

from __future__ import annotations

import os
import random
import sys

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads the variable when a kernel is defined: before anything imports one. Tests of the
    # compiled code are run with TRITON_INTERPRET=0.
    os.environ.setdefault("TRITON_INTERPRET", "1")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """With a GPU, ``-m gpu`` takes in every test of the Triton path, which without one is
    interpreted."""
    if DEVICE == "cuda" and "not gpu" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("triton"):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(autouse=True)
def seed() -> int:
    """Another one in every run, printed with a failure; ACN_TEST_SEED repeats one."""
    given = os.environ.get("ACN_TEST_SEED")
    value = int(given) if given else int.from_bytes(os.urandom(4), "little")
    print(f"ACN_TEST_SEED={value}")
    torch.manual_seed(value)
    random.seed(value)
    return value


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory holds NaN, so that an element nobody writes shows."""
    if DEVICE == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are small, and threads that wait for each other cost minutes on a busy
    machine; tests of threads set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def working_device():
    """After an illegal access no call of CUDA works in a process any more, and every test after
    the one to blame would fail. A worker of pytest-xdist ends then: another takes its place."""
    yield
    if DEVICE != "cuda" or "PYTEST_XDIST_WORKER" not in os.environ:
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"the device is lost: {error}", file=sys.__stderr__, flush=True)
        os._exit(1)


@pytest.fixture(autouse=True)
def skip_without_gpu(request):
    if request.node.get_closest_marker("gpu") and DEVICE != "cuda":
        pytest.skip("torch sees no CUDA device")


@pytest.fixture
def engine_alone(monkeypatch):
    """EarlyExit has no other path than the engine."""
    from acn_kernels import EarlyExit

    def refuse(*_):
        raise AssertionError("the PyTorch path was taken")

    monkeypatch.setattr(EarlyExit, "_by_segments", refuse)
