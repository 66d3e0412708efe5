"""`interp atlas`: a folder that holds an atlas, and can be gone on with."""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from interp.errors import InputError, StorageError
from interp.heads import HeadSet
from interp.models import Model, load
from interp.probes.atlas import atlas, to_table
from interp.probes.reading import Bootstrap
from interp.viz.report import write

RUN = "run.json"
TRACES = "traces"
STORE = "atlas.zarr"
TABLE = "atlas.csv"
PAGE = "index.html"
OWN = {RUN, TRACES, STORE, TABLE, PAGE}
"""What an atlas folder may hold."""

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

    def parameters(self, model: Model) -> dict[str, Any]:
        """What decides the results: two runs that agree here are the same run."""
        texts = {
            name: hashlib.sha256(text.encode()).hexdigest()
            for name, text in self.texts.items()
        }
        asked = asdict(self)
        kept = {key: asked[key] for key in ("model", "max_tokens", "seed")}
        return {
            **kept,
            "detectors": list(self.detectors),
            "model_hash": model.content_hash,
            "texts": texts,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        }


def run(request: Request, progress: Progress) -> tuple[Path, bool]:
    """Make the atlas, or finish one that was interrupted.

    Returns:
        The page, and whether it was there already.

    Raises:
        InputError: The folder holds something else, or another run's results.
    """
    known = _known_run(request.out)
    started = time.perf_counter()
    model = load(
        request.model,
        device=request.device,
        dtype=request.dtype,
        progress=lambda step: progress(step, 0, 0),
    )
    loaded = time.perf_counter()
    parameters = request.parameters(model)
    page = request.out / PAGE
    if known is not None:
        _require_same(request.out, known["parameters"], parameters)
        if known.get("finished") and page.is_file():
            return page, True
    _write_run(request.out, {"parameters": parameters, "finished": False})
    tree = atlas(
        model,
        request.texts,
        detectors=request.detectors,
        seeds=range(request.seed, request.seed + SEEDS),
        max_tokens=request.max_tokens,
        bootstrap=Bootstrap(seed=request.seed),
        store=request.out / TRACES,
        command=request.command,
        progress=progress,
    )
    traced = time.perf_counter()
    save(tree, request.out / STORE)
    to_table(tree).to_csv(request.out / TABLE, index=False)
    write(tree, page)
    done = time.perf_counter()
    _write_run(
        request.out,
        {
            "parameters": parameters,
            "finished": True,
            "command": request.command,
            "versions": json.loads(tree.attrs["versions"]),
            "skipped": json.loads(tree.attrs["skipped"]),
            "seconds": {
                "load": round(loaded - started, 2),
                "trace and detect": round(traced - loaded, 2),
                "write": round(done - traced, 2),
            },
        },
    )
    return page, False


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
    folder: Path, only: str | None, by: str, top: int
) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of an atlas's table.

    The strongest heads by one detector, with its interval; or, of named heads, every
    detector.

    Raises:
        InputError: There is no atlas, no such head, or no such detector.
    """
    path = folder / TABLE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {TABLE}. Give a folder that `interp atlas` wrote."
        )
    table = pd.read_csv(path).set_index(["layer", "head"])
    bounds = ("_low", "_high")
    detectors = [c for c in table.columns[1:] if not c.endswith(bounds)]
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
    strongest = HeadSet.top(signal, k=min(top, int(signal.notnull().sum())))
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
    found = {each.name for each in out.iterdir()}
    if not found:
        return None
    try:
        known = json.loads((out / RUN).read_text("utf-8"))
        known["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known is None or found - OWN - {"atlas.part", "run.part"}:
        raise InputError(
            f"{out} holds something else ({', '.join(sorted(found)[:3])}). Choose "
            "another folder with --out."
        )
    return known


def _require_same(out: Path, known: dict[str, Any], asked: dict[str, Any]) -> None:
    for key, value in asked.items():
        if known.get(key) != value:
            raise InputError(
                f"{out} holds another atlas: its {key} is {known.get(key)!r}, this "
                f"run's is {value!r}. Choose another folder with --out, or delete it."
            )


def _write_run(out: Path, record: dict[str, Any]) -> None:
    """Replace run.json, whole or not at all."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = out / "run.part"
        part.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        os.replace(part, out / RUN)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror}. Choose another folder with "
            "--out."
        ) from error
