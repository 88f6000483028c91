"""The code blocks of a page, and whether the commands in them exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

from benchmarks.throughput.suites import SUITES

ROOT = Path(__file__).parents[1]


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """(language, code) in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def run_python_blocks(page: Path, without: str | None = None) -> dict:
    """Runs them in their order, leaving out those that mention ``without``; the names they made."""
    blocks = [code for language, code in blocks_of(page) if language == "python"]
    assert blocks
    names: dict = {"__name__": page.stem}
    for code in blocks:
        if without is None or without not in code:
            exec(compile(code, page.name, "exec"), names)
    return names


def shell_commands(page: Path) -> list[list[str]]:
    code = "".join(code for language, code in blocks_of(page) if language == "sh")
    lines = code.replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def assert_command_exists(command: list[str]) -> None:
    """Targets and subcommands are there; running them is the business of other tests and of CI."""
    command = [word for word in command if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if command[0] == "torchrun":
        at = command.index("-m")
        assert command[at + 1] == "acn_kernels.cli"
        command = ["acn-kernels", *command[at + 2 :]]
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif command[0] == "acn-kernels":
        from acn_kernels.cli import parser

        parser().parse_args(command[1:])
    elif command[0] == "build/cpp/acn_infer":
        usage = (ROOT / "csrc/tools/options.cpp").read_text()
        assert all(word in usage for word in command if word.startswith("--"))
    elif command[0] == "cmake":
        options = (ROOT / "CMakeLists.txt").read_text()
        assert all(word[2:].split("=")[0] in options for word in command if "-DACN_" in word)
    elif command[:2] == ["python", "-m"]:
        _entry_point(command[2]).parser().parse_args(command[3:])
    elif command[0] == "benchmarks/on_gpu.sh":
        assert {*command[2:]} <= {"--brief", "--dry-run", *pieces_on_gpu()}
    elif command[0] == "python":
        usage = (ROOT / command[1]).read_text()
        assert all(f'"{word}"' in usage for word in command if word.startswith("--"))
    else:
        assert command[0] == "pip", command


def pieces_on_gpu() -> set[str]:
    """What benchmarks/on_gpu.sh takes: its own pieces, and the cases that its pattern lets pass."""
    script = (ROOT / "benchmarks/on_gpu.sh").read_text()
    by_default = re.search(r"all=\((.*?)\)", script)[1].split()
    asked_for = re.search(r'\[\[ " \$\{all\[\*\]\} (.*?) "', script)[1].split()
    pattern = re.search(r"case_name='(.*?)'", script)[1]
    cases = [case.name for case in SUITES["all"] if re.match(pattern, case.name)]
    return {*by_default, *asked_for, *cases}


def _entry_point(name: str):
    """What ``python -m name`` runs."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def links_of(page: Path) -> list[str]:
    """Where the page's links lead, without those to other sites."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [link for link in found if not link.startswith(("http:", "https:"))]


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether the file that ``link`` names is there, and the heading in it."""
    name, _, anchor = link.partition("#")
    there = page.parent / name if name else page
    if not there.exists():
        return False
    headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE) if anchor else []
    as_anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}
    return not anchor or anchor in as_anchors
