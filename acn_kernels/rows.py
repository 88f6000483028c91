"""Which rows of y, along the token axis (-2), a head reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acn_kernels.kept import calls_are_plain

_MOST_LENGTHS_KEPT = 256


class RowSelection(NamedTuple):
    """Rows resolved for one sequence length.

    index: [R] int64, the chosen tokens. row_map: [T] int32, a token's place in ``index`` or -1.
    """

    index: Tensor
    row_map: Tensor

    def shape_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """That of the chosen rows of a tensor of ``shape``, [..., R, D]."""
        # A tracer takes the len() of a tensor for a number that never changes.
        return *shape[:-2], self.index.shape[0], shape[-1]


class Rows:
    """A validated choice of rows, independent of the sequence length.

    Args:
        rows: "first", "last", a slice, or a 1-D integer tensor (or list) without duplicates;
            negative entries count from the end.

    Raises:
        TypeError, ValueError: ``rows`` is none of these.
    """

    def __init__(self, rows: str | slice | Tensor | list[int]) -> None:
        self._resolved: dict[tuple[int, torch.device], RowSelection] = {}
        named = {"first": slice(0, 1), "last": slice(-1, None)}
        if isinstance(rows, str):
            if rows not in named:
                raise ValueError(
                    f"rows is {rows!r}; it takes None, 'first', 'last', a slice or an index tensor"
                )
            rows = named[rows]
        if isinstance(rows, slice):
            if rows.step is not None and rows.step < 1:
                raise ValueError(f"rows is {rows}; a slice takes a step of at least 1")
            self.where: slice | list[int] = rows
            return
        if not isinstance(rows, (Tensor, list, tuple)):
            raise TypeError(
                f"rows is a {type(rows).__name__}; "
                "it takes None, 'first', 'last', a slice or an index tensor"
            )
        index = torch.as_tensor(rows)
        if index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(
                f"rows has shape {tuple(index.shape)} and dtype {index.dtype}; "
                "an index tensor is 1-D and integer"
            )
        self.where = index.tolist()

    def positions(self, length: int) -> list[int]:
        """The chosen tokens of a sequence of ``length`` tokens, each in [0, length)."""
        if isinstance(self.where, slice):
            return list(range(length))[self.where]
        for token in self.where:
            if not -length <= token < length:
                raise ValueError(f"rows names token {token}, but the input has {length} tokens")
        positions = [token % length for token in self.where]
        if len(set(positions)) != len(positions):
            raise ValueError(f"rows is {self.where}; each of the {length} tokens may occur once")
        return positions

    def resolve(self, length: int, device: torch.device) -> RowSelection:
        """The selection for sequences of ``length`` tokens, on ``device``.

        Kept from call to call: building it anew copies from the host, which a CUDA graph refuses.
        """
        if torch.compiler.is_compiling() and isinstance(self.where, slice):
            return self._traced(length, device)
        if not calls_are_plain():
            return self._build(length, device)
        found = self._resolved.get((length, device))
        if found is None:
            if len(self._resolved) == _MOST_LENGTHS_KEPT:
                self._resolved.clear()
            with torch.inference_mode(False):  # a training may follow
                found = self._resolved[length, device] = self._build(length, device)
        return found

    def _traced(self, length: int, device: torch.device) -> RowSelection:
        """As :meth:`_build`, by operations that are the same for every length."""
        index = torch.arange(length, device=device)[self.where]
        chosen = index.shape[0]
        self._check_some(chosen, length)
        places = torch.arange(chosen, device=device, dtype=torch.int32)
        row_map = torch.full((length,), -1, device=device, dtype=torch.int32)
        return RowSelection(index, row_map.index_copy(0, index, places))

    @staticmethod
    def _check_some(chosen: int, length: int) -> None:
        if chosen == 0:
            raise ValueError(f"rows selects none of the {length} tokens")

    def _build(self, length: int, device: torch.device) -> RowSelection:
        positions = self.positions(length)
        self._check_some(len(positions), length)
        places = {token: place for place, token in enumerate(positions)}
        row_map = [places.get(token, -1) for token in range(length)]
        return RowSelection(
            torch.tensor(positions, device=device, dtype=torch.int64),
            torch.tensor(row_map, device=device, dtype=torch.int32),
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_resolved": {}}
