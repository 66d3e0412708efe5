"""`interp atlas`: a folder that holds an atlas, and can be gone on with."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.app.folder import (
    PAGE,
    RUN,
    identity,
    known_run,
    require_same,
    save,
    write_run,
    writing,
)
from interp.errors import InputError
from interp.heads import HeadSet
from interp.inputs import prepare
from interp.models import Model, load
from interp.probes.atlas import atlas, to_table
from interp.probes.reading import Bootstrap
from interp.viz.report import write

TRACES = "traces"
STORE = "atlas.zarr"
TABLE = "atlas.csv"

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

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the results beside model and texts."""
        return {
            "detectors": list(self.detectors),
            "max_tokens": self.max_tokens,
            "seed": self.seed,
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
    known = known_run(out)
    started = time.perf_counter()
    model = load(
        request.model,
        device=request.device,
        dtype=request.dtype,
        progress=lambda step: progress(step, 0, 0),
    )
    loaded = time.perf_counter()
    decided = identity(model, request.texts, request.parameters)
    if known is not None:
        require_same(out, known, decided, "atlas")
        made = all((out / name).exists() for name in (STORE, TABLE, PAGE))
        if known.get("finished") and made:
            return out / PAGE, True
    _require_usable(model, request)
    with writing(out):
        write_run(out, {**decided, "finished": False})
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
            **decided,
            "finished": True,
            "command": request.command,
            "versions": json.loads(tree.attrs["versions"]),
            "timings": timings,
            "skipped": json.loads(tree.attrs["skipped"]),
        }
        write_run(out, record)
    return out / PAGE, False


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


def _require_usable(model: Model, request: Request) -> None:
    """Refuses a model or text before anything is written."""
    model.anatomy.require_attention()
    for name, text in request.texts.items():
        try:
            prepare(model, text, request.max_tokens)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
