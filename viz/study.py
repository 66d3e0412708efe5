"""The page of a study: ablations of several models and sets of heads, compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from interp.viz.ablation import SURE, own_effects, rows, tasks
from interp.viz.effects import effect_plot, measured
from interp.viz.embed import FigureBook
from interp.viz.findings import Finding
from interp.viz.numbers import plural
from interp.viz.page import compose, write_page
from interp.viz.tokens import visible


@dataclass(frozen=True)
class Part:
    """One ablation of a study."""

    model: str
    heads: str
    """Name of the set of heads."""
    folder: str
    """Below the study's own."""
    tree: xr.DataTree | None
    """What was found; None if it failed."""
    why: str = ""
    """What failed."""

    @property
    def name(self) -> str:
        """Model and heads."""
        return f"{self.model}, {self.heads}"


def write(title: str, parts: Sequence[Part], path: Path, *, command: str = "") -> Path:
    """Write the page of a study.

    Args:
        title: Of the study.
        parts: Its ablations, also those that failed.
        path: The file.
        command: What makes the study again.

    Returns:
        The file that was written, whole or not at all.

    Raises:
        StorageError: The file cannot be written.
    """
    return write_page(render(title, parts, command=command), path)


def render(title: str, parts: Sequence[Part], *, command: str = "") -> str:
    """The page of a study, as HTML."""
    book = FigureBook()
    compared = list(_compared(parts))
    return compose(
        "study.html",
        book,
        title=visible(title, 120),
        findings=[_finding(key, effects) for key, effects in compared],
        tasks=[_section(key, effects, book) for key, effects in compared],
        done=[_link(part) for part in parts if part.tree is not None],
        failed=_failed(parts),
        refused=[k for k, each in compared if not each["interpretable"].any()],
        n_parts=len(parts),
        command=command,
    )


def _compared(parts: Sequence[Part]) -> Iterator[tuple[str, xr.Dataset]]:
    """Effects on each task's own metric, over all ablations."""
    found: dict[str, list[xr.Dataset]] = {}
    for part in parts:
        for _, task in tasks(part.tree) if part.tree is not None else ():
            own = own_effects(task)
            names = [f"{part.name}, {mode}" for mode in own["intervention"].values]
            own = own.assign_coords(intervention=np.array(names, dtype=object))
            found.setdefault(str(task.attrs["name"]), []).append(own)
    for number, (name, each) in enumerate(found.items()):
        most = max(one.sizes["draw"] for one in each)
        padded = [one.pad(draw=(0, most - one.sizes["draw"])) for one in each]
        joined = xr.concat(padded, "intervention", combine_attrs="override")
        yield f"task_{number}", joined.assign_attrs(task=name)


def _finding(key: str, effects: xr.Dataset) -> Finding:
    """In how many ablations something surely changed."""
    can = effects["interpretable"].values.astype(bool)
    name, n = visible(str(effects.attrs["task"]), 60), int(can.sum())
    left_out = plural(int((~can).sum()), "ablation")
    guess = "where the untouched model does no better than a guess"
    if not n:
        sentence = f"{left_out} are left out, {guess}: they say nothing of heads."
        return Finding(f"{name}: not interpreted", sentence, key)
    sure = can & (effects["p_holm"].values < SURE)
    control = abs(effects["control"])
    is_largest = (control < abs(effects["effect"])).where(control.notnull(), True)
    beyond = sure & is_largest.all("draw").values & (effects["n_controls"].values > 0)
    sentence = (
        f"In {sure.sum()} of {plural(n, 'ablation')} the {measured(effects)} surely "
        f"changes (p below {SURE:g}, corrected within each), in {beyond.sum()} of them "
        "more than with any of its random controls."
    )
    if n < len(can):
        sentence += f" Left out: {left_out} {guess}."
    return Finding(f"{name}: {beyond.sum()} of {n}", sentence, key)


def _section(key: str, effects: xr.Dataset, book: FigureBook) -> dict[str, Any]:
    name = visible(str(effects.attrs["task"]), 60)
    label = f"{name}: effect of each ablation with its interval, beside its controls."
    told = zip(rows(effects), effects["interpretable"].values, strict=True)
    return {
        "key": key,
        "name": name,
        "metric": measured(effects),
        "units": str(effects.attrs["units"]),
        "figure": book.add(effect_plot(effects), label),
        "rows": [{**row, "interpretable": bool(can)} for row, can in told],
    }


def _failed(parts: Sequence[Part]) -> dict[str, str]:
    """Why ablations failed, and which of them."""
    found: dict[str, list[str]] = {}
    for part in parts:
        if part.tree is None:
            found.setdefault(part.why, []).append(part.name)
    return {why: "; ".join(names) for why, names in found.items()}


def _link(part: Part) -> dict[str, str]:
    return {
        "name": part.name,
        "href": quote(f"{part.folder}/index.html"),
        "chosen": "" if part.tree is None else str(part.tree.attrs.get("chosen", "")),
        "heads": "" if part.tree is None else str(part.tree.attrs.get("heads", "")),
    }
