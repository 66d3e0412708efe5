"""`interp atlas`: a folder that holds an atlas, and can be gone on with."""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from interp.errors import InputError, StorageError
from interp.heads import HeadSet
from interp.inputs import prepare
from interp.models import Model, load
from interp.probes.atlas import atlas, to_table
from interp.probes.reading import Bootstrap
from interp.viz.report import write

RUN = "run.json"
TRACES = "traces"
STORE = "atlas.zarr"
TABLE = "atlas.csv"
PAGE = "index.html"
IDENTITY = ("model", "model_hash", "inputs", "device", "parameters")
"""What decides the results: two runs that agree in it are the same run."""

SEEDS = 3
"""Runs on repeated random tokens."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    model: str
    texts: dict[str, str]
    out: Path
    detectors: tuple[str, ...]
    max_tokens: int | None
    seed: int
    device: str
    dtype: str | None
    command: str

    def identity(self, model: Model) -> dict[str, Any]:
        """What decides the results, as run.json holds it."""
        return {
            "model": model.name,
            "model_hash": model.content_hash,
            "inputs": {
                name: hashlib.sha256(text.encode()).hexdigest()
                for name, text in self.texts.items()
            },
            "device": str(model.device),
            "parameters": {
                "detectors": list(self.detectors),
                "max_tokens": self.max_tokens,
                "seed": self.seed,
                "dtype": str(model.dtype).removeprefix("torch."),
            },
        }


def make(request: Request, progress: Progress) -> tuple[Path, bool]:
    """Make the atlas, or finish one that was interrupted.

    Returns:
        The page, and whether it was there already.

    Raises:
        InputError: A text cannot be used, or the folder holds something else or another
            run's results.
        UnsupportedModelError: The model's attention cannot be reached.
        StorageError: The folder cannot be written.
    """
    out = request.out
    known = _known_run(out)
    started = time.perf_counter()
    model = load(
        request.model,
        device=request.device,
        dtype=request.dtype,
        progress=lambda step: progress(step, 0, 0),
    )
    loaded = time.perf_counter()
    identity = request.identity(model)
    if known is not None:
        _require_same(out, known, identity)
        made = all((out / name).exists() for name in (STORE, TABLE, PAGE))
        if known.get("finished") and made:
            return out / PAGE, True
    _require_usable(model, request)
    with _writing(out):
        _write_run(out, {**identity, "finished": False})
        tree = atlas(
            model,
            request.texts,
            detectors=request.detectors,
            seeds=range(request.seed, request.seed + SEEDS),
            max_tokens=request.max_tokens,
            bootstrap=Bootstrap(seed=request.seed),
            store=out / TRACES,
            command=request.command,
            progress=progress,
        )
        traced = time.perf_counter()
        progress("writing", 0, 0)
        save(tree, out / STORE)
        to_table(tree).to_csv(out / TABLE, index=False)
        write(tree, out / PAGE)
        timings = {
            "load_s": round(loaded - started, 2),
            "trace_and_detect_s": round(traced - loaded, 2),
            "write_s": round(time.perf_counter() - traced, 2),
        }
        record = {
            **identity,
            "finished": True,
            "command": request.command,
            "versions": json.loads(tree.attrs["versions"]),
            "timings": timings,
            "skipped": json.loads(tree.attrs["skipped"]),
        }
        _write_run(out, record)
    return out / PAGE, False


def save(tree: xr.DataTree, path: Path) -> None:
    """Write an atlas as a Zarr store, whole or not at all."""
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: strings have no final specification yet
        tree.to_zarr(part, consolidated=False)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(part, path)


def rows(
    folder: Path, only: str | None, by: str | None, top: int
) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of an atlas's table.

    The strongest heads by one detector (the first if none is named), with its interval;
    or, of named heads, every detector.

    Raises:
        InputError: There is no atlas, no such head, or no such detector.
    """
    path = folder / TABLE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {TABLE}. Give a folder that `interp atlas` wrote."
        )
    try:
        table = pd.read_csv(path).set_index(["layer", "head"])
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path} is not what `interp atlas` wrote. Make the atlas again."
        ) from error
    bounds = ("_low", "_high")
    detectors = [c for c in table.columns[1:] if not c.endswith(bounds)]
    if not detectors:
        raise InputError(
            f"{folder} has no numbers of heads: its detectors are over tokens. Make an "
            "atlas with others."
        )
    by = by or detectors[0]
    if by not in detectors:
        raise InputError(
            f"{folder} has no detector {by!r}. Choose one of {', '.join(detectors)}."
        )
    signal = table[by].to_xarray()
    if only is not None:
        named = HeadSet.parse(only, signal)
        cells = {str(h): table.loc[(h.layer, h.head), detectors] for h in named}
        lines = [[d, *(f"{c[d]:.3g}" for c in cells.values())] for d in detectors]
        return ["detector", *cells], lines
    n_values = int(signal.notnull().sum())
    if not n_values:
        raise InputError(
            f"{by} has no value at any head of {folder}; {RUN} says why under "
            f"'skipped'. Choose one of {', '.join(detectors)}."
        )
    strongest = HeadSet.top(signal, k=min(top, n_values))
    columns = ["kv_head", by, f"{by}_low", f"{by}_high"]
    lines = [
        [str(h), *(f"{v:.3g}" for v in table.loc[(h.layer, h.head), columns])]
        for h in strongest
    ]
    return ["head", *columns], lines


def _known_run(out: Path) -> dict[str, Any] | None:
    """What an earlier run left in the folder; None if it is new or empty."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out} is a file. Choose another folder with --out.")
    found = sorted(each.name for each in out.iterdir())
    if not found or found == ["run.part"]:
        return None
    try:
        known = json.loads((out / RUN).read_text("utf-8"))
        if all(key in known for key in IDENTITY):
            return known
    except (OSError, ValueError, TypeError):
        pass
    raise InputError(
        f"{out} holds something else ({', '.join(found[:3])}). Choose another folder "
        "with --out."
    )


def _require_same(out: Path, known: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuses another run's results."""
    known, asked = ({**each, **each["parameters"]} for each in (known, asked))
    for key in [*asked["parameters"], *IDENTITY]:
        was, now = known.get(key), asked[key]
        if key != "parameters" and json.dumps(was) != json.dumps(now):
            raise InputError(
                f"{out} holds another atlas ({key}: {_said(was)}; of this run: "
                f"{_said(now)}). Choose another folder with --out, or delete it."
            )


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({digest[:8]})" for name, digest in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _require_usable(model: Model, request: Request) -> None:
    """Refuses a model or text before anything is written."""
    model.anatomy.require_attention()
    for name, text in request.texts.items():
        try:
            prepare(model, text, request.max_tokens)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


def _write_run(out: Path, record: dict[str, Any]) -> None:
    """Replace run.json, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / "run.part"
    part.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    os.replace(part, out / RUN)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns a failed write into one clear error."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror or error}. What was finished is "
            "kept; make room and run the same command, or choose another folder with "
            "--out."
        ) from error
