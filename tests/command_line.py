"""The command line as tests call it, and tiny models as the folders that it takes."""

import io
import random
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import transformers as hf
from tiny_models import VOCAB, tiny, tiny_tokenizer

from interp.app.cli import main

PROGRAM = [sys.executable, "-c", "from interp.app.cli import main; main()"]
"""The command line as a process of its own."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int | str | None
    out: str
    err: str


def run(*arguments: object) -> Ended:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["interp", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    return Ended(stop.value.code, out.getvalue(), err.getvalue())


def made(*arguments: object) -> str:
    """What a command prints that succeeds, without its last line break."""
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    return ended.out.removesuffix("\n")


def refused(*arguments: object) -> str:
    """The one line of a command that finds its arguments wrong."""
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    return only_line(ended.err)


def only_line(err: str) -> str:
    """The one line of stderr, which ends in a remedy."""
    assert err.startswith("interp: ")
    assert err.count("\n") == 1
    assert err.endswith((".\n", "?\n"))
    return err


def says(line: str, *words: str) -> bool:
    """Whether all the words are there; a failure shows the line."""
    missing = [word for word in words if word not in line]
    assert not missing, line
    return True


def save(root: Path, family: str) -> Path:
    """A folder with a tiny model of that family and its tokenizer."""
    folder = root / family
    if not folder.exists():
        hf.utils.logging.disable_progress_bar()
        tiny(family)[0].save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


def words(n: int, seed: int = 0) -> str:
    """That many random words, each a token of the tiny tokenizer."""
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(3, VOCAB)}" for _ in range(n))


def write_words(path: Path, n: int = 40) -> Path:
    """A text file of that many tokens."""
    path.write_text(words(n), "utf-8")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def copy(source: Path, target: Path) -> Path:
    """A copy of a folder that a test may spoil."""
    return Path(shutil.copytree(source, target))


def hears_ctrl_c() -> None:
    """In a new process: what a job in the background would be deaf to."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
