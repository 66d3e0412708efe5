"""`interp report`: a scripted study, an ablation for each model and set of heads."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import xarray as xr

from interp.app import ablate
from interp.app.folder import (
    PAGE,
    digest,
    known_run,
    versions,
    write_run,
    write_whole,
    writing,
)
from interp.app.heads import Choice, read_heads
from interp.app.options import typed
from interp.app.progress import Progress
from interp.app.results import BEFORE, to_table
from interp.app.study_file import StudyFile, placed
from interp.app.tasks import Spec, read_tasks
from interp.app.texts import read_texts
from interp.errors import InputError, InterpError
from interp.interventions.ablation import Mode
from interp.models import load
from interp.significance import holm
from interp.viz.study import Part, write

TABLE = "study.csv"

KEYS = {
    "title": str,
    "models": list,
    "modes": list,
    "tasks": list,
    "heads": dict,
    "texts": list,
    "max_tokens": int,
    "controls": int,
    "seed": int,
    "dtype": str,
}
"""What a study may say."""

HEAD_KEYS = {"heads": (str, list), "file": str, "top": str, "groups": bool}
"""What a set of heads may say."""


@dataclass(frozen=True)
class Study:
    """What a study's file says."""

    path: Path
    title: str
    models: tuple[str, ...]
    heads: dict[str, tuple[Choice, bool]]
    """By name: how they are chosen, and whether as whole KV groups."""
    modes: tuple[Mode, ...]
    tasks: tuple[Spec, ...]
    texts: dict[str, str]
    max_tokens: int | None
    n_controls: int | None
    seed: int
    dtype: str | None
    content_hash: str


def read_study(file: StudyFile) -> Study:
    """What a study's file asks for, and everything that it names but models.

    Raises:
        InputError: It says something that a study does not have, with its line; or a
            task, text or set of heads cannot be read.
    """
    path, said = file.path, file.said
    file.require(said, KEYS)
    for key in ("models", "heads"):
        if not said.get(key):
            raise InputError(
                f"The study {path} names no {key}. Give at least one, as "
                + ('models = ["smollm2-135m"].' if key == "models" else _LIKE)
            )
    folder = path.parent
    heads = {}
    for name, table in said["heads"].items():
        if not isinstance(table, dict):
            raise file.wrong(name, "is no table", f"Write {_LIKE}")
        file.require(table, HEAD_KEYS)
        named = table.get("heads")
        named = named.split(",") if isinstance(named, str) else named
        listed = folder / table["file"] if "file" in table else None
        choice = read_heads(named, listed, table.get("top"))
        heads[name] = choice, table.get("groups", False)
    texts = read_texts([folder / each for each in said.get("texts", [])])
    tasks = tuple(said.get("tasks", ["nll"]))
    read_tasks(tasks, texts, folder)
    return Study(
        path=path,
        title=said.get("title", path.stem),
        models=tuple(placed(folder, each) for each in said["models"]),
        heads=heads,
        modes=ablate.read_modes(said.get("modes", ["zero"])),
        tasks=tasks,
        texts=texts,
        max_tokens=said.get("max_tokens"),
        n_controls=said.get("controls"),
        seed=said.get("seed", 0),
        dtype=said.get("dtype"),
        content_hash=digest(file.text),
    )


def make(
    study: Study, out: Path, device: str, progress: Progress
) -> tuple[Path, str | None]:
    """Run a study, or go on with it.

    Returns:
        The page, and one line on what failed; None if nothing did.

    Raises:
        InputError: The folder holds something else.
        StorageError: It cannot be written.
    """
    known_run(out, keys=("study",))
    started = time.perf_counter()
    with writing(out):
        record = {"study": study.path.name, "study_hash": study.content_hash}
        write_run(out, {**record, "finished": False})
        parts = list(_parts(study, out, device, progress))
        progress("writing", 0, 0)
        write_whole(out / TABLE, _table(parts).to_csv(index=False))
        write(study.title, parts, out / PAGE, command=typed())
        failed = [part for part in parts if part.tree is None]
        finished = {
            **record,
            "finished": not failed,
            "command": typed(),
            "versions": versions(),
            "parts": [{"folder": part.folder, "failed": part.why} for part in parts],
            "timings": {"study_s": round(time.perf_counter() - started, 2)},
        }
        write_run(out, finished)
    if not failed:
        return out / PAGE, None
    return out / PAGE, (
        f"{len(failed)} of {len(parts)} ablations of {study.path.name} failed; first "
        f"{failed[0].folder}: {failed[0].why} The others are in {out}; mend this and "
        "run the same command."
    )


def _parts(study: Study, out: Path, device: str, progress: Progress) -> Iterator[Part]:
    """Every model with every set of heads; what fails is told, and left."""
    for model, name in zip(study.models, _names(study.models), strict=True):
        loaded, why = None, ""
        try:
            loaded = load(
                model,
                device=device,
                dtype=study.dtype,
                progress=lambda step: progress(step, 0, 0),
            )
        except _FAILURES as error:
            why = _one_line(error)
        for heads, (choice, groups) in study.heads.items():
            folder = f"{name}/{_plain(heads)}"
            part = Part(name, heads, folder, None, why)
            if loaded is None:
                yield part
                continue
            request = ablate.Request(
                model=loaded,
                heads=choice,
                out=out / folder,
                texts=study.texts,
                tasks=study.tasks,
                modes=study.modes,
                groups=groups,
                n_controls=study.n_controls,
                max_tokens=study.max_tokens,
                seed=study.seed,
                command=typed(),
                folder=study.path.parent,
            )
            try:
                ablate.make(request, _told(progress, folder))
                yield replace(part, tree=_open(out / folder / ablate.STORE))
            except _FAILURES as error:
                yield replace(part, why=_one_line(error))


_FAILURES = (InterpError, MemoryError, torch.OutOfMemoryError)
_LIKE = '[heads.induction] with top = "induction:5%".'


def _told(progress: Progress, folder: str) -> Progress:
    """The same progress, of one folder."""
    return lambda step, done, total: progress(f"{folder}: {step}", done, total)


def _open(store: Path) -> xr.DataTree:
    return xr.open_datatree(store, engine="zarr", consolidated=False).load()


def _table(parts: list[Part]) -> pd.DataFrame:
    """All rows, and p corrected over all that the study asked for."""
    tables = []
    for part in parts:
        if part.tree is not None:
            table = to_table(part.tree)
            table.insert(0, "model", part.model)
            table.insert(1, "heads", part.heads)
            tables.append(table)
    if not tables:
        return pd.DataFrame(columns=["model", "heads"])
    table = pd.concat(tables, ignore_index=True)
    p = table["p"].where(table["asked"] == BEFORE)
    table["p_holm_study"] = holm(xr.DataArray(p.to_numpy())).values
    return table


def _names(models: tuple[str, ...]) -> list[str]:
    """A folder name for each model, none twice."""
    names: list[str] = []
    for model in models:
        name = _plain(Path(model).resolve().name.removesuffix(".gguf"))
        n_before = sum(
            each.rpartition("~")[0] == name or each == name for each in names
        )
        names.append(f"{name}~{n_before + 1}" if n_before else name)
    return names


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".") or "unnamed"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
