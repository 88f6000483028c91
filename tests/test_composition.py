"""What a composition asks of Python's own dicts: the extension's answers, and ours."""

from __future__ import annotations

import pytest
import torch

from acn_kernels import _extension
from acn_kernels.composition import _InPython

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
