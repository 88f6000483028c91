"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def text_table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A title, a line of column heads, then a line for each named row of as many cells."""
    first = max(map(len, rows), default=0)
    widths = [
        max(len(c), *(len(row[i]) for row in rows.values())) if rows else len(c)
        for i, c in enumerate(columns)
    ]
    lines = [
        title,
        " " * first + "".join(f"  {c:>{w}}" for c, w in zip(columns, widths, strict=True)),
    ]
    for name, row in rows.items():
        cells = "".join(f"  {cell:>{w}}" for cell, w in zip(row, widths, strict=True))
        lines.append(f"{name:<{first}}{cells}")
    return "\n".join(lines)
