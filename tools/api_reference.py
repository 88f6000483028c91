"""Writes the API reference from the docstrings: one Markdown page for each public module.

    python tools/api_reference.py FOLDER

A module is public where it is listed here, a name where its module lists it in ``__all__``. Needs
transformers, of which the language models are.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[1]))

from acn_kernels.files import written_whole

MODULES = (
    "acn_kernels",
    "acn_kernels.alpha_schedule",
    "acn_kernels.analysis",
    "acn_kernels.blocks",
    "acn_kernels.connection",
    "acn_kernels.convert",
    "acn_kernels.functional",
    "acn_kernels.inference",
    "acn_kernels.models",
    "acn_kernels.models.huggingface",
    "acn_kernels.reference",
    "acn_kernels.training.continual",
    "acn_kernels.training.initialisation",
    "acn_kernels.training.losses",
    "acn_kernels.training.schedules",
    "acn_kernels.training.trainer",
)


def public(module: ModuleType) -> dict[str, object]:
    """The public names of a module and what they stand for."""
    return {name: getattr(module, name) for name in module.__all__}


def page(module: ModuleType) -> str:
    """The module's page: its docstring, then one section for each public name."""
    parts = [f"# {module.__name__}", text_of(module)]
    for name, thing in public(module).items():
        parts += section(name, thing)
    return "\n\n".join(part for part in parts if part) + "\n"


def section(name: str, thing: object) -> Iterator[str]:
    """Heading, signature and docstring; of a class also its own public members."""
    yield f"## {name}"
    if inspect.ismodule(thing):
        yield text_of(thing)
    elif not (inspect.isclass(thing) or inspect.isroutine(thing)):
        yield from constant(thing)
    else:
        yield code(f"{name}{signature(thing)}")
        yield text_of(thing)
        if inspect.isclass(thing):
            for member, of in members(thing).items():
                yield f"### {name}.{member}"
                yield code(f"{member}{signature(of)}")
                yield text_of(of)


def constant(thing: object) -> Iterator[str]:
    """The keys of a table; of anything else its type or alias as it is written."""
    if isinstance(thing, dict):
        yield "\n".join(f"- `{key}`" for key in thing)
    else:
        yield code(str(thing))


def members(cls: type) -> dict[str, object]:
    """Documented public methods and properties that the class defines, or has from a base of this
    package that is on no page, and through no class that is."""
    found = {}
    for base in (cls, *hidden_bases(cls)):
        found |= {name: thing for name, thing in vars(base).items() if name not in found}
    unwrapped = {
        name: thing.__func__ if isinstance(thing, (staticmethod, classmethod)) else thing
        for name, thing in found.items()
        if not name.startswith("_")
    }
    return {
        name: thing
        for name, thing in unwrapped.items()
        if (inspect.isfunction(thing) or isinstance(thing, property)) and thing.__doc__
    }


def hidden_bases(cls: type) -> list[type]:
    listed = [thing for name in MODULES for thing in public(importlib.import_module(name)).values()]
    bases = [base for base in cls.__mro__[1:] if base.__module__.startswith("acn_kernels.")]
    shown = [base for base in bases if base in listed]
    return [base for base in bases if not any(issubclass(other, base) for other in shown)]


def signature(thing: object) -> str:
    """The arguments as written; nothing for a property, or where Python knows none."""
    if isinstance(thing, property):
        return ""
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""
    # Annotations are quoted where they wait to be evaluated; functions print their address.
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    return re.sub(r"<function .*? at 0x[0-9a-f]+>", "...", text)


def code(text: str) -> str:
    return f"```\n{text}\n```"


def text_of(thing: object) -> str:
    """The docstring; its indented parts (arguments, errors, equations) stay as they are set."""
    return inspect.getdoc(thing) or ""


def write(folder: Path) -> list[Path]:
    """The files that were written, the index last."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{name}.md": page(importlib.import_module(name)) for name in MODULES}
    pages["index.md"] = "# API\n\n" + "".join(f"- [{n}]({n}.md)\n" for n in MODULES)
    for name, text in pages.items():
        with written_whole(folder / name) as path:
            path.write_text(text)
    return [folder / name for name in pages]


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    # Nothing here needs it, and one made for another torch keeps transformers from being imported.
    sys.modules.setdefault("torchvision", None)
    print(*write(Path(sys.argv[1])), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
