"""GPUs that give a block less shared memory than sm_80: smaller launches there, or a reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE
from layers import packed
from mixer_blocks import mixer
from test_linear_stack import check as check_linear_stack
from test_mixer_stack import check_stack as check_mixer_stack

from acn_kernels import FusedACNStack, dispatch, functional
from acn_kernels.functional import MixerParameters
from acn_kernels.whole_stack import whole_stack_of

triton_runs, why_not = dispatch.availability()["triton"]
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not triton_runs, reason=why_not)]
launch = pytest.importorskip("acn_kernels.kernels.launch")

CUDA = torch.device("cuda")
WIDE_CLOSING = {"depth": 2, "tokens": 4, "width": 130, "hidden": (8, 16), "closing": True}


@pytest.fixture
def little_shared(monkeypatch):
    monkeypatch.setattr(launch, "has_little_shared", lambda device: True)


@pytest.mark.parametrize(("kilobytes", "little"), [(99, True), (163, False), (227, False)])
def test_the_device_tells(kilobytes, little, monkeypatch):
    properties = SimpleNamespace(shared_memory_per_block_optin=kilobytes * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert launch.has_little_shared(CUDA) is little
    assert not launch.has_little_shared(torch.device("cpu"))


@pytest.mark.parametrize(
    ("tokens", "width", "dtype", "backward"),
    [
        (64, 128, torch.bfloat16, False),
        (64, 128, torch.bfloat16, True),
        (32, 256, torch.float16, False),
        (64, 64, torch.float32, True),
    ],
)
def test_samples_that_fit_keep_their_tile(tokens, width, dtype, backward, monkeypatch):
    sizes = tokens, width, (64, 512), dtype, backward, CUDA
    tiles = []
    for little in (False, True):
        monkeypatch.setattr(launch, "has_little_shared", lambda device, little=little: little)
        tiles.append(launch.mixer_tile(*sizes))
    assert tiles[0] == tiles[1] and tiles[0].stages == 3


def test_mixers_in_smaller_chunks(little_shared):
    check_mixer_stack(2, (2,), 9, 100, (20, 40), scaled=True, roundings=15)
    check_mixer_stack(2, (1,), 9, 100, (20, 40), closing=True, alpha=0.5, roundings=30)


def test_a_linear_stack_in_chunks(little_shared):
    check_linear_stack(2, (70, 100), scaled=True)


def test_a_closing_weight_that_does_not_fit_is_refused(little_shared):
    blocks = mixer(**WIDE_CLOSING, dtype=torch.float16)
    x = packed((2, 4, 130), torch.float16, DEVICE)
    with pytest.raises(RuntimeError, match=r"130 x 130 in torch.float16.* up to 65536 bytes"):
        functional.mixer_stack(x, MixerParameters.of(blocks))


def test_a_stack_whose_closing_weight_does_not_fit_runs_layer_by_layer(monkeypatch):
    stack = FusedACNStack(mixer(**WIDE_CLOSING, dtype=torch.float16), backend="triton")
    x = packed((2, 4, 130), torch.float16, DEVICE)
    whole = stack(x)
    assert not isinstance(whole_stack_of(stack, x, len(stack), True), str)
    monkeypatch.setattr(launch, "has_little_shared", lambda device: True)
    assert "too large for shared memory" in whole_stack_of(stack, x, len(stack), True)
    torch.testing.assert_close(stack(x), whole, atol=0.1, rtol=0.1)
