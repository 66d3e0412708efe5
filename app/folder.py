"""The folder that a command fills: whose it is, and how it is written."""

import hashlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from interp.errors import InputError, StorageError
from interp.models import Model

RUN = "run.json"
PAGE = "index.html"
IDENTITY = ("model", "model_hash", "inputs", "device", "parameters")
"""What decides the results: two runs that agree in it are the same run."""


def identity(
    model: Model, texts: Mapping[str, str], parameters: dict[str, Any]
) -> dict[str, Any]:
    """What decides the results of a model on some texts, as run.json holds it."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "model": model.name,
        "model_hash": model.content_hash,
        "inputs": {name: digest(text) for name, text in texts.items()},
        "device": str(model.device),
        "parameters": {**parameters, "dtype": dtype},
    }


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of what the numbers come from."""
    packages = ("interp", "torch", "transformers", "numpy", "xarray", "zarr")
    return {"python": platform.python_version()} | {p: version(p) for p in packages}


def known_run(out: Path, keys: tuple[str, ...] = IDENTITY) -> dict[str, Any] | None:
    """What an earlier run left in the folder; None if it is new or empty.

    Raises:
        InputError: It is a file, or holds something else.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out} is a file. Choose another folder with --out.")
    found = sorted(each.name for each in out.iterdir())
    if not found or found == ["run.part"]:
        return None
    try:
        known = json.loads((out / RUN).read_text("utf-8"))
        if all(key in known for key in keys):
            return known
    except (OSError, ValueError, TypeError):
        pass
    raise InputError(
        f"{out} holds something else ({', '.join(found[:3])}). Choose another folder "
        "with --out."
    )


def require_same(
    out: Path, known: dict[str, Any], asked: dict[str, Any], what: str
) -> None:
    """Refuses another run's results.

    Args:
        out: The folder.
        known: What it holds.
        asked: What this run would hold.
        what: What such a folder holds, such as "atlas".

    Raises:
        InputError: With the first thing that differs.
    """
    if asked["parameters"].keys() - known["parameters"].keys():
        raise InputError(
            f"{out} holds no {what} but another command's results. Choose another "
            "folder with --out."
        )
    known, asked = ({**each, **each["parameters"]} for each in (known, asked))
    for key in [*asked["parameters"], *IDENTITY]:
        was, now = known.get(key), asked[key]
        if key != "parameters" and json.dumps(was) != json.dumps(now):
            raise InputError(
                f"{out} holds another {what} ({key}: {_said(was)}; of this run: "
                f"{_said(now)}). Choose another folder with --out, or delete it."
            )


def write_run(out: Path, record: dict[str, Any]) -> None:
    """Replace run.json, whole or not at all."""
    write_whole(out / RUN, json.dumps(record, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)


def save(tree: xr.DataTree, path: Path) -> None:
    """Write a tree as a Zarr store, whole or not at all."""
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: strings have no final specification yet
        tree.to_zarr(part, consolidated=False)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(part, path)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns a failed write into one clear error."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror or error}. What was finished is "
            "kept; make room and run the same command, or choose another folder with "
            "--out."
        ) from error


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({digest[:8]})" for name, digest in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
