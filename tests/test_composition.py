"""What a network is made of, and the questions about it: the extension's answers, and ours."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from acn_kernels import _extension
from acn_kernels.composition import Composition, _InPython

ASKED = [_InPython]
if _extension.module() is not None:
    ASKED.append(_extension.module())
asked = pytest.mark.parametrize("ask", ASKED, ids=["Python", "extension"][: len(ASKED)])


@asked
def test_values_of_dicts(ask):
    a, b, c = object(), object(), object()
    dicts = [{"a": a, "b": b}, {}, {"c": c}]
    assert ask.values_are(dicts, [a, b, c])
    for others in ([a, b], [a, b, c, c], [a, c, b], [object(), b, c], []):
        assert not ask.values_are(dicts, others)
    assert ask.values_are([], []) and ask.values_are([{}], [])
    dicts[1]["d"] = a
    assert not ask.values_are(dicts, [a, b, c]) and ask.values_are(dicts, [a, b, a, c])


@asked
def test_entries_of_dicts(ask):
    a, b = object(), object()
    dicts = [{"x": a}, {"y": b}]
    assert ask.entries_are(dicts, ["x", "y"], [a, b])
    assert not ask.entries_are(dicts, ["x", "y"], [a, a])
    assert not ask.entries_are(dicts, ["x", "x"], [a, b])
    assert ask.entries_are([], [], [])


@asked
def test_types_of_objects(ask):
    class Number(int):
        pass

    assert ask.types_are([1, "a", Number(1)], [int, str, Number])
    assert not ask.types_are([1, "a", Number(1)], [int, str, int]), "a subclass is another type"
    assert ask.types_are([], [])


@asked
def test_sizes_of_dicts(ask):
    dicts = [{}, {"a": 1}, OrderedDict(a=1, b=2)]
    assert ask.sizes_are(dicts, [0, 1, 2]) and ask.sizes_are([], [])
    dicts[0]["a"] = 1
    assert not ask.sizes_are(dicts, [0, 1, 2])
    del dicts[0]["a"], dicts[2]["b"]
    assert not ask.sizes_are(dicts, [0, 1, 2]) and ask.sizes_are(dicts, [0, 1, 1])


@asked
def test_places_of_tensors(ask):
    tensors = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(0)]
    places = ask.Places(tensors)
    assert places.hold()
    tensors[0].add_(1)
    assert places.hold()
    kept = tensors[1].data
    tensors[1].data = torch.ones(2, 2)
    assert not places.hold()
    tensors[1].data = kept
    assert places.hold()
    tensors[1].data = kept[:1]
    assert not places.hold(), "fewer numbers at the same place"


def sliced(network):
    network[0].weight.data = network[0].weight.data[:2]


@pytest.mark.parametrize("extension", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda network: network[2].register_buffer("more", torch.zeros(1)),
        lambda network: setattr(network[1], "eps", 1e-3),
        lambda network: setattr(network[1], "mine", 1),
        lambda network: setattr(network[0].weight, "data", torch.zeros(3, 3)),
        lambda network: network.to(torch.float64),
        lambda network: network.add_module("last", nn.ReLU()),
        lambda network: network[0].register_full_backward_hook(lambda *_: None),
        lambda network: network[1].register_parameter("bias", None),
        sliced,
    ],
)
def test_whatever_changes_is_seen(change, extension, monkeypatch):
    if not extension:
        monkeypatch.setattr(_extension, "module", lambda: None)
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Sequential(nn.BatchNorm1d(3)))
    network[2].add_module("empty", nn.Sequential())
    made_of = Composition([network])
    with torch.no_grad():
        network[0].weight.add_(1)
    network.eval().requires_grad_(False)
    assert made_of.is_that_of([network])
    assert not made_of.is_that_of([]) and not made_of.is_that_of([network, network])
    change(network)
    assert not made_of.is_that_of([network])


@pytest.mark.parametrize("extension", [True, False])
def test_nothing_is_kept_of_what_has_hooks(extension, monkeypatch):
    """They may be others at the next question, as many as there were."""
    if not extension:
        monkeypatch.setattr(_extension, "module", lambda: None)
    network = nn.Sequential(nn.Linear(3, 3))
    network[0].register_forward_hook(lambda *_: None)
    assert not Composition([network]).is_that_of([network])
