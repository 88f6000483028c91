"""The code on the pages under docs/ runs as written."""

from __future__ import annotations

import pytest
import torch
from markdown import ROOT, assert_command_exists, blocks_of, run_python_blocks, shell_commands
from residual_hf import import_transformers
from timm_models import import_timm

from acn_kernels.convert import registry

PAGES = sorted((ROOT / "docs").glob("*.md"))
NEEDS = {  # beyond what the package itself depends on
    "compress": ("sklearn", "torch_pruning", "torchao"),
    "export": ("onnxscript", "onnxruntime"),
}


def named(path) -> str:
    return path.stem


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: graphs would write the poison into every allocation of their own."""


@pytest.fixture
def registered():
    """What a page registers ends with it."""
    before = dict(registry._adapters)
    yield
    registry._adapters.clear()
    registry._adapters.update(before)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_run_in_their_order(page, registered):
    text = page.read_text()
    if "import timm" in text:
        import_timm()
    if "transformers" in text:
        import_transformers()
    for module in NEEDS.get(page.stem, ()):
        pytest.importorskip(module, reason=f"docs/{page.name} uses it")
    run_python_blocks(page)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_python_or_shell(page):
    assert {language for language, _ in blocks_of(page)} <= {"python", "sh"}


COMMANDS = [(page, command) for page in PAGES for command in shell_commands(page)]


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[" ".join(command) for _, command in COMMANDS]
)
def test_shell_commands_exist(page, command):
    assert_command_exists(command)
