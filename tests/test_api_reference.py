"""Every public name is documented, and the reference made of the docstrings has it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect

import pytest
from markdown import ROOT
from residual_hf import import_transformers

import acn_kernels

_spec = importlib.util.spec_from_file_location("api_reference", ROOT / "tools/api_reference.py")
api_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(api_reference)
import_transformers()  # the language models are documented too

PUBLIC = [
    pytest.param(module, name, id=f"{module}.{name}")
    for module in api_reference.MODULES
    for name in importlib.import_module(module).__all__
]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_every_public_name_has_a_docstring_of_its_own(module, name):
    thing = getattr(importlib.import_module(module), name)
    if not (inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing)):
        return  # a table or an alias
    assert thing.__doc__, f"{module}.{name}"
    # What dataclass and NamedTuple write in the place of one.
    assert not thing.__doc__.startswith((f"{name}(", "Alias for"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    return {path.name: path.read_text() for path in api_reference.write(folder)}


@pytest.mark.parametrize("module", api_reference.MODULES)
def test_the_reference_has_every_public_name_and_its_docstring(written, module):
    text = written[f"{module}.md"]
    for name, thing in api_reference.public(importlib.import_module(module)).items():
        assert f"\n## {name}\n" in text
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing) in text
    assert f"[{module}]({module}.md)" in written["index.md"]


def test_methods_are_there_with_their_arguments(written):
    text = written["acn_kernels.md"]
    assert "### FusedACNStack.forward_intermediates\n" in text
    assert "### Engine.from_folder\n" in text and "compiled: bool = False" in text
    assert "criterion: str = 'entropy'" in text and "model: ImageClassifier," in text
    assert not [name for name, page in written.items() if " at 0x" in page]
    # Of a base that is on no page.
    assert "### ImageClassifier.reset_classifier\n" in written["acn_kernels.models.md"]
    assert "### ACNGPTModel.prepared\n" in written["acn_kernels.models.huggingface.md"]
    assert acn_kernels.FusedACNStack.advance.__doc__.splitlines()[0] in text
