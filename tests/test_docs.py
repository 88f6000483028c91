"""The code of every page under docs/ runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from residual_hf import import_transformers
from timm_models import import_timm

from acn_kernels.convert import registry

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


@pytest.fixture
def registered():
    """What a page registers ends with it."""
    before = dict(registry._adapters)
    yield
    registry._adapters.clear()
    registry._adapters.update(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_their_order(page, registered):
    text = page.read_text()
    if "import timm" in text:
        import_timm()
    if "transformers" in text:
        import_transformers()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks and {language for language, _ in blocks} <= {"python", "sh"}
    names: dict = {"__name__": "docs"}
    for language, code in blocks:
        if language == "python":
            exec(compile(code, page.name, "exec"), names)
