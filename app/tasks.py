"""Tasks as a command line or a study writes them, on the texts that it gives."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.tasks import Task, named

Spec = str | Mapping[str, Any]
"""A name, a name and a file as `choice:FILE`, or a table with `task` and knobs."""


def read_tasks(
    specs: Sequence[Spec], texts: Mapping[str, str], folder: Path = Path()
) -> dict[str, Task]:
    """The tasks that specifications stand for, by their names.

    Args:
        specs: As `interp.tasks.named` reads them; a table may also be written as text,
            the way TOML does: `{task = "passkey", lengths = [512]}`.
        texts: What `nll` reads and others hide their needles in, unless a task names a
            file of its own.
        folder: Where relative paths begin.

    Raises:
        InputError: No task, two of one name, or one that cannot be read.
    """
    if not specs:
        raise InputError("Tasks were asked for; got none. Name one, such as nll.")
    found: dict[str, Task] = {}
    for spec in specs:
        task = _on_texts(_placed(_table(spec), folder), texts)
        if task.name in found:
            raise InputError(
                f"Two tasks are called {task.name}. Name one of them in its table, as "
                f'in {{task = "{task.name}", name = "another"}}.'
            )
        found[task.name] = task
    return found


def _table(spec: Spec) -> dict[str, Any]:
    """Name and knobs."""
    if not isinstance(spec, str):
        return dict(spec)
    if not spec.lstrip().startswith("{"):
        return {"task": spec}
    try:
        return tomllib.loads(f"spec = {spec}")["spec"]
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"The task {spec} cannot be read: {error}. Write a table as TOML does, as "
            'in {task = "passkey", lengths = [512, 1024]}.'
        ) from error


def _on_texts(table: dict[str, Any], texts: Mapping[str, str]) -> Task:
    """The task, on the texts if it reads some and its table names none."""
    task: Any = named(table)
    own = {each.name for each in fields(task)} - table.keys()
    given = {"texts": dict(texts), "haystack": "\n\n".join(texts.values())}
    missing = {name: text for name, text in given.items() if name in own}
    return replace(task, **missing) if missing and ":" not in table["task"] else task


def _placed(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The table with paths that begin in a folder."""
    kind, colon, file = str(table.get("task", "")).partition(":")
    placed = {"task": f"{kind}:{folder / file}"} if colon else {}
    if isinstance(table.get("source"), str):
        placed["source"] = str(folder / table["source"])
    return table | placed
