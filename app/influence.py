"""`interp influence`: the texts of a corpus, by how much they hang on some heads."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.app.corpus import Entry
from interp.app.folder import (
    identity,
    known_run,
    require_same,
    versions,
    write_run,
    write_whole,
    writing,
)
from interp.app.heads import Choice
from interp.app.progress import Progress
from interp.errors import InputError
from interp.evaluation import require_decoder
from interp.models import Model, load
from interp.probes.influence import WINDOW, attention_influence
from interp.tasks.reading import SHIPPED, shipped
from interp.tasks.texts import stretches

TABLE = "influence.csv"
KEPT = "kept.jsonl"
RUNS = "losses.jsonl"

COLUMNS = (
    *("id", "domain", "tokens", "nll", "nll_ref", "influence", "low", "high"),
    *("control_median", "control_low", "control_high", "rank", "percentile", "kept"),
)


@dataclass(frozen=True)
class Request:
    """What was asked for, before anything was measured."""

    model: str | Model
    corpus: str
    entries: Sequence[Entry]
    heads: Choice
    out: Path
    controls: int = 3
    keep: float = 0.2
    window: int = WINDOW
    max_tokens: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None
    command: str = ""

    @property
    def inputs(self) -> dict[str, str]:
        """The whole corpus, under its name."""
        entries = [(each.name, each.domain, each.text) for each in self.entries]
        return {self.corpus: json.dumps(entries)}

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the results beside model and corpus."""
        return {
            "heads": self.heads.spec,
            "controls": self.controls,
            "keep": self.keep,
            "window": self.window,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }


def make(request: Request, progress: Progress) -> tuple[Path, bool]:
    """Measure every text, or finish what was interrupted.

    Returns:
        The table, and whether it was there already.

    Raises:
        InputError: Heads or texts cannot be used, or the folder holds something else
            or another run's results.
        UnsupportedModelError: No decoder-only language model.
        StorageError: The folder cannot be written.
    """
    out, clock = request.out, [time.perf_counter()]
    known = known_run(out)
    model = load(
        request.model,
        device=request.device,
        dtype=request.dtype,
        progress=lambda step: progress(step, 0, 0),
    )
    clock.append(time.perf_counter())
    decided = identity(model, request.inputs, request.parameters)
    if known is not None:
        require_same(out, known, decided, "influence of texts")
        if known.get("finished") and all((out / n).exists() for n in (TABLE, KEPT)):
            return out / TABLE, True
    require_decoder(model)
    cut = request.window, request.max_tokens
    for entry in request.entries:  # before heads are looked for, which takes long
        stretches(model, entry.name, entry.text, *cut)
    texts = {SHIPPED: shipped()}  # read by detectors that read a text
    heads, _ = request.heads.choose(model, texts, None, request.seed, progress)
    if request.controls:
        heads.random_like(request.seed)  # refused before the folder is made
    clock.append(time.perf_counter())
    with writing(out):
        write_run(out, {**decided, "finished": False})
        found = attention_influence(
            model,
            {entry.name: entry.text for entry in request.entries},
            heads,
            controls=request.controls,
            window=request.window,
            max_tokens=request.max_tokens,
            seed=request.seed,
            out=out / RUNS,
            progress=partial(progress, "tokens of texts"),
        )
        clock.append(time.perf_counter())
        progress("writing", 0, 0)
        table = ranked(found, request.entries, request.keep)
        write_whole(out / TABLE, table.to_csv(index=False))
        write_whole(out / KEPT, _kept(table, request.entries))
        clock.append(time.perf_counter())
        steps = ("load_s", "choose_s", "run_s", "write_s")
        timings = {s: round(clock[n + 1] - clock[n], 2) for n, s in enumerate(steps)}
        finished = {
            **decided,
            "finished": True,
            "command": request.command,
            "heads": str(heads),
            "chosen": str(request.heads),
            "drawn": found["drawn"].values.tolist(),
            "versions": versions(),
            "timings": timings,
            "skipped": [] if request.controls else [_UNCONTROLLED],
        }
        write_run(out, finished)
    return out / TABLE, False


def ranked(
    influence: xr.Dataset, entries: Sequence[Entry], share: float
) -> pd.DataFrame:
    """A row for each text, the most influenced of each domain first.

    Args:
        influence: From `attention_influence`, over the entries.
        entries: With their domains.
        share: Of the texts of each domain, at least one, that are kept; equals at the
            end of it are all kept.

    Returns:
        `low` and `high` bound `influence`; `control_median`, `control_low` and
        `control_high` are of the random draws. `rank` in the domain begins at 1,
        `percentile` is the share of the domain, in percent, that has no more.
    """
    bounds, control = influence["influence_interval"], influence["control"]
    control = control if control.sizes["draw"] else control.reindex(draw=[0])
    table = pd.DataFrame(
        {
            "id": [entry.name for entry in entries],
            "domain": [entry.domain for entry in entries],
            **{n: influence[n].values for n in ("tokens", "nll", "nll_ref")},
            "influence": influence["influence"].values,
            "low": bounds.sel(bound="low").values,
            "high": bounds.sel(bound="high").values,
            "control_median": control.median("draw").values,
            "control_low": control.min("draw").values,
            "control_high": control.max("draw").values,
        }
    )
    within = table.groupby("domain")["influence"]
    rank = within.rank(method="min", ascending=False, na_option="bottom")
    most = np.rint(share * np.asarray(within.transform("size"))).clip(min=1)
    table["rank"] = rank.astype(int)
    table["percentile"] = within.rank(method="max", pct=True)
    table["percentile"] *= 100
    table["kept"] = rank <= most
    table = table.sort_values(by=["domain", "rank"], kind="stable")
    return pd.DataFrame(table, columns=list(COLUMNS))


def read_share(option: str, text: str) -> float:
    """The fraction that an option like 20% means.

    Raises:
        InputError: It is no share.
    """
    try:
        share = float(text.strip().removesuffix("%")) / 100
        if not text.strip().endswith("%") or not 0 < share <= 1:
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"{option} takes a share above 0% and up to 100%; got {text!r}. Write it "
            "as 20%."
        ) from error
    return share


def _kept(table: pd.DataFrame, entries: Sequence[Entry]) -> str:
    """The texts that are kept as JSON lines, in the corpus's own order."""
    names = set(table.loc[table["kept"], "id"])
    return "".join(
        json.dumps(entry.record) + "\n" for entry in entries if entry.name in names
    )


_UNCONTROLLED = {
    "what": "controls",
    "why": "no random controls were drawn: whether other heads would do the same is "
    "not known",
}
