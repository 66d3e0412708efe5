"""The documentation is true: its Python runs, and its commands and pages exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from interp.app.commands import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

TEXT = "The keeper counted the steps to the lamp. The lamp turned twice a minute. " * 3
"""What a page calls my.txt."""


def blocks(page, *languages):
    """What stands between fences of these languages."""
    found = FENCE.findall(page.read_text("utf-8"))
    return [code for language, code in found if language in languages]


def commands(page):
    """Commands of ours that a page shows, in a console, plain or in a line."""
    lines = "\n".join(blocks(page, "console", "")).splitlines()
    text = FENCE.sub("", page.read_text("utf-8"))
    shown = [line.removeprefix("$ ").strip() for line in lines]
    shown += re.findall(r"`(interp [^`]*)`", text)
    return [line for line in shown if line.startswith("interp ")]


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=named
)
def test_the_python_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(TEXT)
    torch.manual_seed(0)
    namespace = {}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{named(page)} block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=named)
def test_the_commands_of_a_page_exist_with_their_options(page):
    for line in commands(page):
        line = re.sub(r"\[[^]]*\]", "", line.partition("  ")[0])  # what may be left out
        # What may stand instead: other options, or other commands of the same group.
        first, *others = line.replace("...", "").split(" | ")
        words = shlex.split(first)[1:]
        check(words, line)
        for each in map(shlex.split, others):
            check(words[: 1 if each[0].startswith("--") else -1] + each, line)


def check(words, line):
    """The command is there, and has the options that stand behind it."""
    command, known, words = get_command(app), set(), list(words)
    while words and hasattr(command, "commands"):
        known |= {option for each in command.params for option in each.opts}
        if words[0].startswith("--"):
            break
        name = words.pop(0)
        assert name in command.commands, f"{line}: there is no {name}"
        command = command.commands[name]
    known |= {option for each in command.params for option in each.opts}
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert asked <= known, f"{line}: {asked - known}"


def test_a_glossary_and_recipes_stand_in_one_place_only():
    for page in PAGES:
        text = page.read_text("utf-8")
        assert ("## Glossary" in text) == (page == DOCS / "concepts.md")
        assert ("## A new detector" in text) == (page == DOCS / "recipes.md")


def test_every_page_of_the_navigation_is_there():
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    named_pages = set(re.findall(r"[\w/]+\.md", settings))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert named_pages == there


def test_pages_fetch_nothing_from_elsewhere():
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "font: false" in settings
    assert "http" not in settings
