"""The README's code runs as written."""

from __future__ import annotations

import pytest
from markdown import ROOT, assert_command_exists, blocks_of, run_python_blocks, shell_commands
from residual_hf import import_transformers
from timm_models import import_timm

from acn_kernels import _extension

README = ROOT / "README.md"


def test_python_blocks_run_in_their_order(capsys):
    import_timm()
    import_transformers()
    run_python_blocks(README, without="acn.Engine" if _extension.module() is None else None)
    assert "fork" in capsys.readouterr().out  # explain's table


def test_every_block_is_python_or_shell():
    assert {language for language, _ in blocks_of(README)} == {"python", "sh"}


@pytest.mark.parametrize("command", shell_commands(README), ids=" ".join)
def test_shell_commands_exist(command):
    assert_command_exists(command)
