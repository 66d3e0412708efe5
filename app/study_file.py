"""The TOML file of a study: what it says, and errors that name the line."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import InputError


@dataclass(frozen=True)
class StudyFile:
    """A study's file."""

    path: Path
    text: str
    said: dict[str, Any]
    """What it says, by key."""

    @classmethod
    def read(cls, path: Path) -> "StudyFile":
        """Read a file.

        Raises:
            InputError: It is missing, or no TOML.
        """
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"The study {path} cannot be read: {error}. Give the path of a TOML "
                "file."
            ) from error
        try:
            return cls(path, text, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InputError(
                f"The study {path} cannot be read as TOML: {error}. Mend that line."
            ) from error

    def require(self, table: dict[str, Any], keys: dict[str, Any]) -> None:
        """Refuses keys that there are not, and values of another kind.

        Args:
            table: The file's, or one in it.
            keys: Kind of each key's value; that of a list is a text, but for tasks.
        """
        for key, value in table.items():
            if key not in keys:
                raise self.wrong(key, "is no key", f"There are {', '.join(keys)}.")
            kind = keys[key]
            is_bool = isinstance(value, bool) and kind is not bool
            if not isinstance(value, kind) or is_bool:
                raise self.wrong(key, f"is {value!r}", f"It takes {_kind(kind)}.")
            if isinstance(value, int) and value < (key == "max_tokens"):
                raise self.wrong(
                    key, f"is {value}", "It counts from 0 on, tokens from 1."
                )
            if isinstance(value, list) and not all(
                isinstance(each, (str, dict) if key in TABLES else str)
                for each in value
            ):
                raise self.wrong(key, f"is {value!r}", "It takes a list of texts.")

    def wrong(self, key: str, what: str, remedy: str) -> InputError:
        """An error on a key, with its line."""
        pattern = rf"^\s*(\[.*\b)?[\"']?{re.escape(key)}\b"
        lines = enumerate(self.text.splitlines(), 1)
        number = next((n for n, line in lines if re.match(pattern, line)), None)
        place = f", line {number}" if number else ""
        return InputError(f"The study {self.path}{place}: {key} {what}. {remedy}")


TABLES = ("tasks", "claim")
"""Keys whose lists may hold tables."""


def placed(folder: Path, model: str) -> str:
    """A model's folder or file, where the study names one beside it."""
    return str(folder / model) if (folder / model).exists() else model


def _kind(kind: Any) -> str:
    names = {str: "a text", list: "a list", int: "a whole number", dict: "tables"}
    names[bool] = "true or false"
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(names[each] for each in kinds)
