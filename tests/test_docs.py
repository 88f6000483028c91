"""The code on the pages under docs/ runs as written."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext

import pytest
import torch
from markdown import (
    ROOT,
    assert_command_exists,
    blocks_of,
    leads_somewhere,
    links_of,
    pieces_on_gpu,
    run_python_blocks,
    shell_commands,
)
from residual_hf import import_transformers
from timm_models import import_timm

from acn_kernels import _extension
from acn_kernels.convert import registry

PAGES = sorted((ROOT / "docs").glob("*.md"))
WITH_PYTHON = [page for page in PAGES if any(block[0] == "python" for block in blocks_of(page))]
NEEDS = {  # beyond what the package itself depends on
    "compress": ("sklearn", "torch_pruning", "torchao"),
    "cut": ("sklearn",),
    "export": ("onnxscript", "onnxruntime"),
    "extend": ("triton",),
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


def absent(page) -> str | None:
    """What blocks must not mention that are to run here."""
    if page.stem == "exit-early" and _extension.module() is None:
        return "acn.Engine"
    if page.stem == "extend" and os.environ.get("TRITON_INTERPRET") != "1":
        return "observed()"
    return None


@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_python_blocks_run_in_their_order(page, registered):
    text = page.read_text()
    if "import timm" in text:
        import_timm()
    if "transformers" in text or "gpt" in text:
        import_transformers()
    for module in NEEDS.get(page.stem, ()):
        pytest.importorskip(module, reason=f"docs/{page.name} uses it")
    run_python_blocks(page, absent(page))
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


@pytest.mark.parametrize(
    ("words", "exist"),
    [
        ("ACN_DATA_DIR=DATA benchmarks/on_gpu.sh OUT paper", True),
        ("benchmarks/on_gpu.sh OUT failed infer_mlp128", True),
        ("benchmarks/on_gpu.sh OUT papers", False),
        ("benchmarks/on_gpu.sh OUT cpu_infer_mlp128", False),  # a case, but none of a GPU
    ],
)
def test_commands_of_on_gpu_name_pieces_that_it_takes(words, exist):
    with nullcontext() if exist else pytest.raises(AssertionError):
        assert_command_exists(words.split())


def test_the_page_names_every_piece_of_on_gpu():
    (pieces,) = re.findall(
        r"^.*The pieces are (.*?);", (ROOT / "docs/benchmark.md").read_text(), flags=re.MULTILINE
    )
    named = set(re.findall(r"`(\w+)`", pieces))
    families = {name for name in named if name.endswith("_")}
    of_a_family = {name for name in pieces_on_gpu() if name.startswith(tuple(families))}
    assert pieces_on_gpu() == (named - families) | of_a_family


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=named)
def test_links_lead_somewhere(page):
    assert [link for link in links_of(page) if not leads_somewhere(page, link)] == []


def test_the_readme_names_every_page():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links_of(ROOT / "README.md")}
    assert {*PAGES} <= linked
