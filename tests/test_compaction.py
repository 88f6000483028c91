"""compact: the samples that stay, at the front, in their order."""

from __future__ import annotations

import pytest
import torch
from counting import Count
from layers import BACKENDS, LAYOUTS, device_of, packed

from acn_kernels import functional, reference


def pattern(name: str, batch: int, device: str) -> torch.Tensor:
    place = torch.arange(batch)
    stays = {
        "all": place >= 0,
        "none": place < 0,
        "some": torch.rand(batch) < 0.5,
        "first": place == 0,
        "last": place == batch - 1,
    }[name]
    return stays.to(device)


def check_compaction(backend, stays, tensors, kept=None):
    """Equal to the reference to the bit, of full length or of the length asked for."""
    expected, count = reference.compact(stays, tensors)
    outs, got = functional.compact(stays, tensors, kept, backend)
    assert got.dtype == torch.int32 and got.dim() == 0 and int(got) == int(count)
    assert len(outs) == len(tensors)
    for x, out, true in zip(tensors, outs, expected, strict=True):
        room = len(stays) if kept is None else kept
        assert out.shape == (room, *x.shape[1:]) and out.dtype == x.dtype and out.is_contiguous()
        front = true[:room]
        assert torch.equal(out[: len(front)], front)
        assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() or not x.numel()


def some_tensors(batch, device, layout=packed):
    return [
        layout((batch, 3, 7), torch.bfloat16, device),
        layout((batch, 65), torch.float32, device),
        torch.randperm(batch, device=device),
    ]


@pytest.mark.parametrize("name", ["all", "none", "some", "first", "last"])
@pytest.mark.parametrize("batch", [1, 2, 37, 300])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_pattern(backend, batch, name):
    device = device_of(backend)
    stays = pattern(name, batch, device)
    check_compaction(backend, stays, some_tensors(batch, device))
    check_compaction(backend, stays, some_tensors(batch, device), kept=int(stays.sum()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend):
    device = device_of(backend)
    stays = pattern("all", 0, device)
    check_compaction(backend, stays, [torch.zeros(0, 3, device=device)])
    check_compaction(backend, stays, [])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, layout):
    device = device_of(backend)
    check_compaction(backend, pattern("some", 9, device), some_tensors(9, device, layout))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float64, torch.int32, torch.uint8, torch.bool], ids=str
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype(backend, dtype):
    device = device_of(backend)
    x = torch.randint(0, 2, (11, 5), device=device).to(dtype)
    check_compaction(backend, pattern("some", 11, device), [x])


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_of_many_tiles_and_of_nothing(backend):
    device = device_of(backend)
    stays = pattern("some", 6, device)
    tensors = [torch.randn(6, 3, 1501, device=device), torch.randn(6, 0, 4, device=device)]
    check_compaction(backend, stays, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_copied_like_any_number(backend):
    device = device_of(backend)
    x = torch.full((4, 3), torch.nan, device=device)
    x[2] = 1.0
    (out,), count = functional.compact(pattern("all", 4, device), [x], backend=backend)
    assert int(count) == 4 and torch.equal(out.isnan(), x.isnan())


@pytest.mark.parametrize("backend", BACKENDS)
def test_room_for_fewer_than_stay(backend):
    device = device_of(backend)
    check_compaction(backend, pattern("all", 9, device), some_tensors(9, device), kept=4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_asks_the_host(backend):
    """No operator whose result the host would have to wait for, with the count known or not."""
    device = device_of(backend)
    stays, tensors = pattern("some", 9, device), some_tensors(9, device)
    for kept in (None, 3):
        with Count(size=1, opened=True) as count:
            functional.compact(stays, tensors, kept, backend)
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_to_copy")
        assert count.operators
        assert not [name for name in count.operators if any(word in name for word in waits)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_refuses_to_record_a_gradient(backend):
    device = device_of(backend)
    x = torch.ones(3, 2, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="compact has no gradient"):
        functional.compact(pattern("all", 3, device), [x], backend=backend)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"stays": torch.zeros(3)}, ValueError, "stays is torch.float32 of shape"),
        ({"stays": torch.zeros(3, 1, dtype=torch.bool)}, ValueError, "takes a bool tensor"),
        ({"stays": [True] * 3}, ValueError, "takes a bool tensor"),
        ({"tensors": [torch.zeros(2)]}, ValueError, r"tensors\[0\] has shape \(2,\)"),
        ({"tensors": [torch.zeros(())]}, ValueError, r"tensors\[0\] has shape \(\)"),
        ({"tensors": [None]}, TypeError, r"tensors\[0\] is a NoneType"),
        ({"kept": 4}, ValueError, "kept is 4; it takes None or a number from 0 to 3"),
        ({"kept": -1}, ValueError, "kept is -1"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'"),
    ],
)
def test_bad_arguments(change, error, message):
    given = {"stays": torch.ones(3, dtype=torch.bool), "tensors": [torch.zeros(3, 2)], **change}
    with pytest.raises(error, match=message):
        functional.compact(**given)
