"""How the benchmarks' commands say that they cannot do what they are told."""

from __future__ import annotations

from collections.abc import Callable


def refusal(capsys, main: Callable[[list[str]], int], *arguments: object) -> str:
    """The one line on stderr with which ``main`` ends, with status 2 and nothing on stdout."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and not printed.out
    return printed.err
