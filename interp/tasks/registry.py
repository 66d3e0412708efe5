"""Tasks by name, as a command line or a file of settings gives them."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.tasks.chains import Chains
from interp.tasks.choices import Choices
from interp.tasks.items import Task
from interp.tasks.key_value import KeyValue
from interp.tasks.needle import Needle
from interp.tasks.passkey import Passkey
from interp.tasks.problems import Problems
from interp.tasks.reading import read_text
from interp.tasks.repeated import RepeatedTokens
from interp.tasks.texts import Texts

TASKS: dict[str, type[Task]] = {
    "nll": Texts,
    "repeated": RepeatedTokens,
    "passkey": Passkey,
    "nato": Passkey,
    "needle": Needle,
    "key_value": KeyValue,
    "choice": Choices,
    "problems": Problems,
    "chains": Chains,
}
"""Every task by the name that `named` knows."""
_PRESETS = {"nato": {"kind": "nato"}}


def named(spec: str | Mapping[str, Any]) -> Task:
    """A task by its name, with the knobs that are given.

    Args:
        spec: A name of `TASKS`, such as "passkey"; a name and the file to read, such
            as "nll:FILE" (a text), "passkey:FILE" (the haystack) or "choice:FILE"
            (JSON lines); or a mapping of such a name, under "task", and of knobs: the
            fields of the task.

    Raises:
        InputError: No such name or knob, a knob that means nothing, or a file that
            cannot be read.
    """
    given = {"task": spec} if isinstance(spec, str) else dict(spec)
    kind, colon, file = str(given.pop("task", "")).partition(":")
    if kind not in TASKS:
        near = get_close_matches(kind, TASKS, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise InputError(
            f"The task {kind!r} was asked for; there is none. {meant}Choose of "
            f"{', '.join(TASKS)}, with :FILE where it reads one."
        )
    make = TASKS[kind]
    parameters = inspect.signature(make).parameters
    known = list(parameters)
    knobs: dict[str, Any] = {"name": kind} | _PRESETS.get(kind, {})
    if colon:
        path = Path(file)
        knobs |= _from_file(kind, known, path) | {"name": f"{kind}-{path.stem}"}
    for name, value in given.items():
        knobs[name] = tuple(value) if isinstance(value, list) else value
        _check(kind, known, name, knobs[name])
    source = parameters.get("source")
    if source and source.default is source.empty and "source" not in knobs:
        raise InputError(
            f"The task {kind} reads its questions from a file of JSON lines; none was "
            f"named. Write {kind}:FILE."
        )
    return make(**knobs)


def _from_file(kind: str, known: Sequence[str], path: Path) -> dict[str, Any]:
    """The knobs that the file behind a name sets."""
    if "source" in known:
        return {"source": path}
    if "texts" in known:
        return {"texts": {path.stem: read_text(path)}}
    if "haystack" in known:
        return {"haystack": read_text(path)}
    raise InputError(
        f"The task {kind} reads no file; got {path}. Leave it out: write {kind}."
    )


def _check(kind: str, known: Sequence[str], name: str, value: Any) -> None:
    """Refuse a knob that the task has not, or that is not like its default."""
    if name not in known:
        raise InputError(
            f"The task {kind} was given the knob {name!r}, which it has not. Choose of "
            f"{', '.join(known)}."
        )
    for each in fields(TASKS[kind]):
        if each.name != name:
            continue
        if each.default_factory is not MISSING:
            default, usual = each.default_factory(), ""
        else:
            default, usual = each.default, f", such as {each.default!r}"
        if not _is_like(value, "" if default is None else default):
            raise InputError(
                f"The knob {name} of the task {kind} takes {_kind(default)}{usual}; "
                f"got {value!r}. Write it like that."
            )


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    kinds = (int, float) if isinstance(default, float) else type(default)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return not isinstance(default, tuple) or all(_is_like(v, default[0]) for v in value)


def _kind(default: Any) -> str:
    match default:
        case tuple():
            return "a list"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case Mapping():
            return "texts by name"
    return "a text"
