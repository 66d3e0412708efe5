"""Options that several commands take, and how they are read."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from interp.errors import InputError

Reference = Annotated[
    str, typer.Argument(help="Catalog name, hub id, local folder or .gguf file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, ...; float32 on a CPU if unset.")
]
Names = Annotated[
    str | None,
    typer.Option(help="Names with commas between. Unset: all. A wrong one lists them."),
]
HeadNames = Annotated[
    str | None, typer.Option(help="Which heads, such as L1.H2,L3.H4.")
]
HeadsFile = Annotated[
    Path | None,
    typer.Option(help="One head a line, or a CSV with the columns layer, head."),
]
Strongest = Annotated[
    str | None,
    typer.Option(help="The strongest by a detector: induction:5%, retrieval:14."),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Keep at most this many tokens of each text.")
]


def split(option: str, names: str | None) -> list[str] | None:
    """The names that an option was given; None if it was not.

    Raises:
        InputError: It was given none.
    """
    if names is None:
        return None
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise InputError(
            f"{option} names nothing: it is {names!r}. Give names with commas between, "
            "or leave it out."
        )
    return found


def lengths(tokens: str, option: str = "--tokens") -> list[int]:
    """The numbers that an option was given.

    Raises:
        InputError: One of them is no whole number from 2 on.
    """
    return [_whole(option, part) for part in split(option, tokens) or []]


def _whole(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise InputError(
            f"{option} takes whole numbers from 2 on; got {text!r}. Write it as "
            "512,1024."
        )
    return int(text)


def folder_for(what: str, model: str) -> Path:
    """Where results go that were not given a place."""
    return Path(f"{what}-{Path(model).resolve().name.removesuffix('.gguf')}")


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["interp", *sys.argv[1:]])
