"""The README's code runs as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from acn_kernels import _extension

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run_in_their_order(capsys):
    names: dict = {}
    blocks = [code for language, code in BLOCKS if language == "python"]
    assert blocks
    if _extension.module() is None:
        blocks = [code for code in blocks if "acn.Engine" not in code]
    for code in blocks:
        exec(compile(code, "README.md", "exec"), names)
    assert "fork" in capsys.readouterr().out  # explain's table


def test_every_block_is_python_or_shell():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}


def shell_commands() -> list[list[str]]:
    code = "".join(code for language, code in BLOCKS if language == "sh")
    lines = code.replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.mark.parametrize("command", shell_commands(), ids=" ".join)
def test_shell_commands_exist(command):
    """Targets and subcommands are there; running them is the business of other tests and of CI."""
    command = [word for word in command if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif command[0] == "acn-kernels":
        from acn_kernels.cli import parser

        parser().parse_args(command[1:])
    elif command[0] == "build/cpp/acn_infer":
        usage = (ROOT / "csrc/tools/options.cpp").read_text()
        assert all(word in usage for word in command if word.startswith("--"))
    else:
        assert command[0] == "pip", command
