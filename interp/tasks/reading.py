"""What tasks read from files: texts, and questions, one to a line."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from interp.errors import InputError

SHIPPED = "lighthouse.txt"
"""The text that is used when none is given."""
ORCHARD = "orchard.txt"
"""Another, in which experiments hide what heads look for: no task reads it unasked."""
NAMED = 5
"""Broken lines that an error names."""

Source = str | Path | Sequence[Mapping[str, Any]]
"""A file of JSON lines, or what such lines hold."""
Parsed = TypeVar("Parsed")


def shipped(name: str = SHIPPED) -> str:
    """A text that comes with the package."""
    return (files("interp") / "data" / name).read_text("utf-8")


def read_text(path: str | Path) -> str:
    """A file's text.

    Raises:
        InputError: It is missing, empty, or not UTF-8.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(
            f"The text {path} does not exist. Give the path of a UTF-8 text file."
        ) from error
    except IsADirectoryError as error:
        raise InputError(
            f"The text {path} is a folder. Give the path of a UTF-8 text file."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"The text {path} is not UTF-8: byte {error.start} cannot be read. Convert "
            "it, for example with iconv."
        ) from error
    except OSError as error:
        raise InputError(
            f"The text {path} cannot be read: {error.strerror}. Check its path and "
            "permissions."
        ) from error
    if not text.strip():
        raise InputError(f"The text {path} is empty. Give at least one word.")
    return text


def read_questions(
    source: Source,
    parse: Callable[[Mapping[str, Any]], Parsed],
    like: str,
    what: str = "questions",
) -> tuple[tuple[int, Parsed], ...]:
    """Questions with the numbers of their lines, from 1; an empty line holds none.

    Args:
        source: A file of JSON lines, or what such lines hold.
        parse: Reads one; raises InputError with a few words on what is wrong.
        like: What a good line looks like.
        what: What lines hold, in errors.

    Raises:
        InputError: Lines cannot be read; the first of them are named together.
    """
    is_file = isinstance(source, str | Path)
    where, word = (str(source), "line") if is_file else (f"the {what}", "entry")
    # Not splitlines: JSON may hold the separators of lines that Unicode has.
    lines = read_text(source).rstrip("\n").split("\n") if is_file else source
    found: list[tuple[int, Parsed]] = []
    broken: list[str] = []
    for number, line in enumerate(lines, 1):
        if isinstance(line, str) and not line.strip():
            continue
        try:
            entry = json.loads(line) if isinstance(line, str) else line
            if not isinstance(entry, Mapping):
                raise InputError("no object with names and values")
            found.append((number, parse(entry)))
        except json.JSONDecodeError as error:
            broken.append(f"{word} {number}: no JSON ({error.msg})")
        except InputError as error:
            broken.append(f"{word} {number}: {error}")
    if broken:
        more = len(broken) - NAMED
        named = "; ".join(broken[:NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise InputError(
            f"{what.capitalize()} were to be read from {where}; {len(broken)} of "
            f"{len(lines)} cannot be: {named}. Write each as {like} on a line of its "
            "own."
        )
    if not found:
        raise InputError(
            f"{what.capitalize()} were to be read from {where}; there are none. Write "
            f"each as {like} on a line of its own."
        )
    return tuple(found)


def text_of(entry: Mapping[str, Any], name: str) -> str:
    """A text that an entry must have.

    Raises:
        InputError: It has none of that name.
    """
    text = entry.get(name)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{name!r} is {text!r}, not a text")
    return text.strip()
