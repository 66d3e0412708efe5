"""A corpus as people keep it: JSON lines, a plain text file, or a folder of texts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.tasks.reading import read_questions, read_text

ID, DOMAIN = "id", "domain"
"""Fields of a JSON line that need not be there."""
SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Entry:
    """One text of a corpus.

    Attributes:
        name: Unique in the corpus: its `id`, or where it stands.
        domain: With what it is compared; may be empty.
        text: As it was read.
        record: All that is known of it, as a JSON line holds it.
    """

    name: str
    domain: str
    text: str
    record: Mapping[str, Any]


def read_corpus(
    path: Path, text_field: str = "text", domain_field: str | None = None
) -> list[Entry]:
    """Every text of a corpus.

    Args:
        path: A file of JSON lines (`.jsonl`, `.ndjson`), one object a line; a folder,
            whose `.txt` files each hold a text, in folders named after their domain;
            or any other file, as plain text, with empty lines between its texts.
        text_field: Field of an object that holds the text.
        domain_field: Field that holds the domain, which then every object has to have;
            None takes `domain` where it is there.

    Raises:
        InputError: It holds no text, cannot be read, lacks a field (with the numbers of
            the lines), or has two texts of one id.
    """
    if path.is_dir():
        entries = _in_folder(path)
    elif path.suffix.lower() in SUFFIXES:
        parse = partial(_parsed, text_field, domain_field)
        like = json.dumps({text_field: "...", domain_field or DOMAIN: "..."})
        lines = read_questions(path, parse, like, "texts")
        entries = [_named(number, *parsed) for number, parsed in lines]
    else:
        entries = _in_text(path)
    names: dict[str, Entry] = {}
    for entry in entries:
        if names.setdefault(entry.name, entry) is not entry:
            raise InputError(
                f"Two texts of {path} are called {entry.name!r}. Give each an {ID!r} "
                "of its own, or none at all."
            )
    return entries


def _parsed(
    text_field: str, domain_field: str | None, record: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any], str]:
    """Text, the whole object, and domain."""
    text = record.get(text_field)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{text_field!r} is {_short(text)}, not a text")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("half of a surrogate pair, which is no character") from error
    domain = record.get(domain_field or DOMAIN, None if domain_field else "")
    if not isinstance(domain, str | int):
        raise InputError(f"{domain_field or DOMAIN!r} is {_short(domain)}, no name")
    return text, record, str(domain)


def _named(number: int, text: str, record: Mapping[str, Any], domain: str) -> Entry:
    name = record.get(ID)
    return Entry(f"line {number}" if name is None else str(name), domain, text, record)


def _in_folder(path: Path) -> list[Entry]:
    """One text a file; the folder that it lies in is its domain."""
    entries = []
    for file in sorted(path.rglob("*.txt")):
        inside = file.relative_to(path)
        domain = inside.parent.as_posix() if len(inside.parts) > 1 else ""
        entries.append(_plain(inside.as_posix(), domain, read_text(file)))
    if not entries:
        raise InputError(
            f"Texts were to be read from the folder {path}; it holds no .txt file. "
            "Give a folder that does, or a file of JSON lines."
        )
    return entries


def _in_text(path: Path) -> list[Entry]:
    """Texts with empty lines between, called after the lines that they begin in."""
    lines = enumerate(read_text(path).split("\n"), 1)
    groups = groupby(lines, key=lambda line: bool(line[1].strip()))
    texts = [list(group) for is_text, group in groups if is_text]
    return [
        _plain(f"line {text[0][0]}", "", "\n".join(line for _, line in text))
        for text in texts
    ]


def _plain(name: str, domain: str, text: str) -> Entry:
    return Entry(name, domain, text, {ID: name, DOMAIN: domain, "text": text})


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:40]}..."
