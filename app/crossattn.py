"""`interp crossattn`: attention against saliency, of a recording or a text."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile
import xarray as xr

from interp.app.folder import (
    PAGE,
    identity,
    known_run,
    require_same,
    save,
    versions,
    write_run,
    write_whole,
    writing,
)
from interp.app.progress import Progress
from interp.audio import read_sound
from interp.errors import InputError
from interp.models import Model, load
from interp.probes.crossattn import Options, compare
from interp.probes.crossattn.utterances import LONGEST, MOST_TOKENS, kind_of
from interp.tasks.reading import read_text

TREE = "crossattn.zarr"
TABLE = "crossattn.csv"
CURVES = "curves.csv"
WORDS = "words.csv"
PARTS = "parts"

COLUMNS = (
    *("space", "attribution", "measure", "units", "of", "layer", "head", "baseline"),
    *("value", "low", "high", "low_utterances", "high_utterances"),
    *("null_low", "null_high", "p"),
)


@dataclass(frozen=True)
class Request:
    """What was asked for, before anything was measured."""

    model: str | Model
    given: str
    out: Path
    methods: tuple[str, ...]
    options: Options = field(default_factory=Options)
    text: str | None = None
    max_tokens: int = MOST_TOKENS
    faithfulness: bool = True
    seed: int = 0
    begin: float = 0.0
    seconds: float | None = None
    device: str = "auto"
    dtype: str | None = None
    command: str = ""

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the results beside model and input."""
        return {
            "methods": list(self.methods),
            "max_tokens": self.max_tokens,
            "faithfulness": self.faithfulness,
            "text": self.text,
            "seed": self.seed,
            "begin": self.begin,
            "seconds": self.seconds,
            "options": json.loads(json.dumps(asdict(self.options))),
        }


def make(request: Request, progress: Progress) -> tuple[Path, bool]:
    """Compare attention with saliency, or finish what was interrupted.

    Returns:
        The page, and whether it was there already.

    Raises:
        InputError: The recording or text cannot be used, or the folder holds something
            else or another run's results.
        UnsupportedModelError: The model writes no text, or captum is not installed.
        StorageError: The folder cannot be written.
    """
    from interp.viz.crossattn import page

    out, clock = request.out, [time.perf_counter()]
    known = known_run(out)
    model = load(
        request.model,
        device=request.device,
        dtype=request.dtype,
        progress=lambda step: progress(step, 0, 0),
    )
    clock.append(time.perf_counter())
    given, name, content = read(model, request.given, request.begin, request.seconds)
    decided = identity(model, {name: content}, request.parameters)
    files = (PAGE, TREE, TABLE)
    if known is not None:
        require_same(out, known, decided, "comparison of attention with saliency")
        if known.get("finished") and all((out / n).exists() for n in files):
            return out / PAGE, True
    with writing(out):
        write_run(out, {**decided, "finished": False})
        tree = compare(
            model,
            given,
            methods=request.methods,
            text=request.text,
            options=request.options,
            max_tokens=request.max_tokens,
            faithfulness=request.faithfulness,
            seed=request.seed,
            out=out / PARTS,
            progress=progress,
        )
        clock.append(time.perf_counter())
        progress("writing", 0, 0)
        tree.attrs["versions"] = json.dumps(versions())
        save(tree, out / TREE)
        write_whole(out / TABLE, to_table(tree).to_csv(index=False))
        for file, table in ((CURVES, curves_of(tree)), (WORDS, words_of(tree))):
            if len(table):
                write_whole(out / file, table.to_csv(index=False))
        write_whole(out / PAGE, page(tree))
        clock.append(time.perf_counter())
        steps = ("load_s", "run_s", "write_s")
        timings = {s: round(clock[n + 1] - clock[n], 2) for n, s in enumerate(steps)}
        finished = {
            **decided,
            "finished": True,
            "command": request.command,
            "versions": versions(),
            "timings": timings,
            "skipped": json.loads(tree.attrs["skipped"]),
        }
        write_run(out, finished)
        shutil.rmtree(out / PARTS, ignore_errors=True)
    return out / PAGE, False


def read(
    model: Model, given: str, begin: float = 0.0, seconds: float | None = None
) -> tuple[Any, str, str]:
    """What a model is given, its name, and what identifies its content.

    Args:
        model: Decides whether it is sound or text.
        given: A path; for a model of text also the text itself. One word with a dot
            in it is a path.
        begin: Where in a recording to begin, in seconds.
        seconds: How much of a recording to read; all that follows for None.

    Raises:
        InputError: There is no such file, or it is not what the model reads.
    """
    path = Path(given)
    if kind_of(model) == "speech":
        sound = read_sound(path, begin, seconds, LONGEST)
        heard = hashlib.sha256(sound.samples.tobytes()).hexdigest()
        return sound, sound.name, f"{sound.rate} {heard}"
    if _is_file(path):
        _refuse_sound(model, path)
    elif not path.suffix or len(given.split()) > 1:
        return given, "text", given
    text = read_text(path)
    return text, path.name, text


def to_table(tree: xr.DataTree) -> pd.DataFrame:
    """A row for each space, attribution, measure and what of attention was compared."""
    node = tree["agreement"].to_dataset()
    units = dict(zip(node["measure"].values, node["measure_units"].values, strict=True))
    tables = []
    for of, name in (
        ("all", "overall"),
        ("layer", "by_layer"),
        ("head", "by_head"),
        ("head number", "by_index"),
        ("explanation", "of_baseline"),
    ):
        columns: dict[str, xr.DataArray] = {"value": node[name]}
        interval = node.get(f"{name}_interval")
        if interval is not None:
            over = interval.sel(over="tokens") if of == "all" else interval
            columns |= _bounds(over, "")
        if of == "all":
            columns |= _bounds(node["overall_interval"].sel(over="utterances"), "u")
            columns |= _bounds(node["overall_null"], "null_")
            columns["p"] = node["overall_p"]
        plain = {
            key: each.drop_vars("over", errors="ignore")
            for key, each in columns.items()
        }
        rows = xr.Dataset(plain).to_dataframe().reset_index()
        tables.append(rows.assign(of=of))
    if "without_noise" in node:
        tables.append(_without_noise(node))
    table = pd.concat(tables, ignore_index=True)
    table = table.rename(columns={"ulow": "low_utterances", "uhigh": "high_utterances"})
    table["units"] = [units.get(name, "1") for name in table["measure"]]
    for column in ("layer", "head"):
        if column in table:
            table[column] = table[column].astype("Int64")
    return table.reindex(columns=list(COLUMNS)).dropna(subset=["value"])


def curves_of(tree: xr.DataTree) -> pd.DataFrame:
    """Areas under deletion and insertion curves; empty without them."""
    if "faithfulness" not in tree.children:
        return pd.DataFrame()
    node = tree["faithfulness"].to_dataset()
    columns: dict[str, xr.DataArray] = {"auc": node["auc"], "gain": node["auc_gain"]}
    columns |= _bounds(node["auc_interval"], "auc_")
    columns |= _bounds(node["auc_gain_interval"], "gain_")
    pooled = [
        tree[f"{name}/curves"].to_dataset()["auc_pooled"]
        for name in tree.children
        if name.startswith("utterance_")
    ]
    columns["auc_pooled"] = xr.concat(pooled, "utterance").mean("utterance")
    return xr.Dataset(columns).to_dataframe().reset_index()


def words_of(tree: xr.DataTree) -> pd.DataFrame:
    """Every word with its times in the recording, in seconds; empty for text."""
    tables = []
    for name in tree.children:
        if name.startswith("utterance_") and "words" in tree[name].children:
            # What is inherited would multiply every row by heads, frames, channels.
            own = tree[name].children["words"].to_dataset(inherit=False)
            rows = own.to_dataframe()
            begin = float(tree[name].attrs["begin"])
            rows["begin"], rows["end"] = rows["begin"] + begin, rows["end"] + begin
            tables.append(rows.assign(utterance=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _without_noise(node: xr.Dataset) -> pd.DataFrame:
    """What the masks of a perturbation allow, and the correlation free of it."""
    free = {"value": node["without_noise"]}
    free |= _bounds(node["without_noise_interval"], "")
    rows = [
        xr.Dataset(free).assign_coords(measure="pearson_without_noise"),
        xr.Dataset({"value": node["ceiling"]}).assign_coords(measure="pearson_ceiling"),
    ]
    tables = [each.to_dataframe().reset_index() for each in rows]
    return pd.concat(tables).assign(of="all", attribution="perturbation")


def _bounds(interval: xr.DataArray, prefix: str) -> dict[str, xr.DataArray]:
    return {
        f"{prefix}{bound}": interval.sel(bound=bound, drop=True)
        for bound in ("low", "high")
    }


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text that is too long for a name
        return False


def _refuse_sound(model: Model, path: Path) -> None:
    try:
        soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError):
        return
    raise InputError(
        f"{model.name} reads text; {path} is sound. Choose a model of speech, such as "
        "whisper-base, or give a text."
    )
