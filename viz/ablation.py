"""The page of an ablation: what was asked, what came of it, and what else was seen."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from interp.errors import InputError
from interp.viz import atlas as reading
from interp.viz.arrays import title, unit
from interp.viz.effects import (
    effect_plot,
    has_grid,
    item_grid,
    item_scatter,
    measured,
)
from interp.viz.embed import FigureBook
from interp.viz.findings import Finding
from interp.viz.maps import head_map
from interp.viz.numbers import NOTHING, interval, number, plural, signed
from interp.viz.page import compose, write_page
from interp.viz.sections import provenance
from interp.viz.tokens import visible

ITEMS = 3
"""Items from which on single ones are drawn."""

SURE = 0.05
"""Largest p of a change that is called sure."""

YES_OR_NO = ("exact", "choice")
"""Metrics of which single items tell nothing more than the mean."""

Part = dict[str, Any]


def write(tree: xr.DataTree, path: Path) -> Path:
    """Write the page of an ablation.

    Args:
        tree: As `interp.app.results.ablation_tree` builds it, with a node `heads`.
        path: The file, or an existing folder that gets an `index.html`.

    Returns:
        The file that was written, whole or not at all.

    Raises:
        InputError: Not an ablation.
        StorageError: The file cannot be written.
    """
    return write_page(render(tree), path)


def render(tree: xr.DataTree) -> str:
    """The page of an ablation, as HTML.

    Raises:
        InputError: Not an ablation.
    """
    if not isinstance(tree, xr.DataTree) or not list(tasks(tree)):
        raise InputError(
            "A page is written from an ablation, an xarray.DataTree with a node for "
            f"each task; got {type(tree).__name__}. Open an effects.zarr."
        )
    book = FigureBook()
    return compose(
        "ablation.html",
        book,
        asked=_asked(tree),
        findings=[each for task in tasks(tree) for each in findings(*task)],
        tasks=[_section(key, task, book) for key, task in tasks(tree)],
        maps=list(_maps(tree, book)),
        skipped=reading.skipped(tree),
        provenance=provenance(tree, None),
        refused=[key for key, task in tasks(tree) if not task.attrs["interpretable"]],
        level=_level(tree),
    )


def tasks(tree: xr.DataTree) -> Iterator[tuple[str, xr.DataTree]]:
    """The node of each task, by its key, in the order of the command."""
    names = [name for name in tree.children if name.startswith("task_")]
    for name in sorted(names, key=lambda name: (len(name), name)):
        yield name, tree.children[name]


def findings(key: str, task: xr.DataTree) -> Iterator[Finding]:
    """A sentence for each treatment, on the metric that was asked for before."""
    effects = own_effects(task)
    name = visible(str(task.attrs["name"]), 60)
    measure = measured(effects)
    base, base_interval = effects["base"][0].item(), _interval(effects, "base", 0)
    if not task.attrs["interpretable"]:
        yield Finding(
            f"{name}: not interpreted",
            f"The untouched model scores {number(base)} ({base_interval}), which is "
            f"not surely better than a guess ({number(task.attrs['chance'])}), in "
            f"{measure}. What a model cannot do, no ablation takes away: the numbers "
            "below are gray and say nothing of these heads.",
            key,
        )
        return
    for row, treatment in enumerate(effects["intervention"].values):
        one = effects.isel(intervention=row)
        yield Finding(
            f"{name}, {treatment}: {number(base)} \N{RIGHTWARDS ARROW} "
            f"{number(one['score'].item())}",
            " ".join((_change(one, measure), _against_controls(one))),
            key,
        )


def own_effects(task: xr.DataTree) -> xr.Dataset:
    """Effects on the metric that the task is judged by."""
    return task["effects"][str(task.attrs["metric"])].to_dataset()


def effects_of(task: xr.DataTree) -> list[xr.Dataset]:
    """Effects on every metric: that of the task first, others by name."""
    found = [node.to_dataset() for node in task["effects"].children.values()]
    own = task.attrs["metric"]
    return sorted(found, key=lambda e: (e.attrs["metric"] != own, e.attrs["metric"]))


def _change(one: xr.Dataset, measure: str) -> str:
    effect, n = one["effect"].item(), int(one["n_items"])
    units = _units(one)
    said = (
        f"The {measure} changes by {signed(effect)}{units} "
        f"({_interval(one, 'effect')}; {plural(n, 'item')}"
    )
    low, high = one["effect_interval"].values
    p, p_holm = one["p"].item(), one["p_holm"].item()
    said += f"; p = {_p(p_holm)} after correction)."
    if low <= 0 <= high:
        return f"{said} That is no sure change."
    if p_holm >= SURE and p <= 2.0 ** (1 - n):
        said += f" All items change alike; so few allow no p below {_p(p)}."
    return said


def _against_controls(one: xr.Dataset) -> str:
    n = int(one["n_controls"])
    if not n:
        return (
            "No random controls were drawn: whether other heads would do the same is "
            "not known."
        )
    effect, control = one["effect"].item(), one["control"].values
    beyond = int((abs(control) >= abs(effect) * (1 - 1e-12)).sum())
    count = "none" if not beyond else f"{beyond} of them"
    return (
        f"{plural(n, 'random control')} change it by "
        f"{signed(one['control_mean'].item())} on average, from "
        f"{signed(one['control_low'].item())} to "
        f"{signed(one['control_high'].item())}; {count} as far "
        f"(p = {_p(one['p_control'].item())} against them)."
    )


def _asked(tree: xr.DataTree) -> Part:
    """What the command named before anything was measured."""
    attrs = tree.attrs
    heads = str(attrs.get("heads", "")).split(",")
    modes = json.loads(attrs.get("modes", "[]"))
    groups = "whole KV groups, " if attrs.get("groups") else ""
    own = [
        {
            "name": visible(str(task.attrs["name"]), 60),
            "metric": measured(own_effects(task)),
            "others": [
                measured(each)
                for each in effects_of(task)
                if each.attrs["metric"] != task.attrs["metric"]
            ],
        }
        for _, task in tasks(tree)
    ]
    others = dict.fromkeys(other for each in own for other in each["others"])
    return {
        "model": visible(str(attrs.get("model", "unnamed model")), 80),
        "hash": str(attrs.get("model_hash", "")),
        "n_heads": len(heads),
        "heads": heads,
        "chosen": groups + str(attrs.get("chosen", "")),
        "modes": [(mode, MODES.get(mode, "")) for mode in modes],
        "tasks": own,
        "n_controls": int(attrs.get("n_controls", 0)),
        "seed": attrs.get("seed", 0),
        "others": list(others),
    }


def _section(key: str, task: xr.DataTree, book: FigureBook) -> Part:
    """One task: its figure, its numbers and its items."""
    effects = own_effects(task)
    name = visible(str(task.attrs["name"]), 60)
    metric, measure = str(task.attrs["metric"]), measured(effects)
    items = task["items"].to_dataset()
    part = {
        "key": key,
        "name": name,
        "metric": measure,
        "units": str(effects.attrs["units"]),
        "base": number(effects["base"][0].item()),
        "base_interval": _interval(effects, "base", 0),
        "chance": number(float(task.attrs["chance"])),
        "interpretable": bool(task.attrs["interpretable"]),
        "n_items": int(items.sizes["item"]),
        "figure": book.add(
            effect_plot(effects),
            f"{name}: effect on {measure} with its interval, and that of random "
            "controls.",
        ),
        "rows": [row for each in effects_of(task) for row in rows(each)],
        "grid": None,
        "scatter": None,
    }
    treatments = [str(each) for each in effects["intervention"].values]
    shown = items[metric].sel(intervention=["none", *treatments])
    if has_grid(items[metric]):
        controls = items[metric].drop_sel(intervention=["none", *treatments])
        figure = item_grid(shown, controls)
        label = f"{name}: {measure} by length and depth, untouched and ablated."
        part["grid"] = book.add(figure, label)
    elif metric not in YES_OR_NO and items.sizes["item"] >= ITEMS:
        label = f"{name}: each item's {measure}, ablated against untouched."
        part["scatter"] = book.add(item_scatter(shown), label)
    return part


def rows(effects: xr.Dataset) -> Iterator[Part]:
    """A row of the table for each treatment."""
    for row, treatment in enumerate(effects["intervention"].values):
        one = effects.isel(intervention=row)
        yield {
            "treatment": str(treatment),
            "interpretable": bool(one["interpretable"]),
            "metric": measured(effects),
            "units": str(effects.attrs["units"]),
            "before": effects.attrs.get("asked") == "before",
            "base": number(one["base"].item()),
            "score": number(one["score"].item()),
            "effect": signed(one["effect"].item()),
            "interval": _interval(one, "effect"),
            "p": _p(one["p"].item()),
            "p_holm": _p(one["p_holm"].item()),
            "control": signed(one["control_mean"].item()),
            "range": interval(one["control_low"].item(), one["control_high"].item()),
            "p_control": _p(one["p_control"].item()),
        }


def _maps(tree: xr.DataTree, book: FigureBook) -> Iterator[Part]:
    """The heads on the grid: what was ablated, what by, and how often in controls."""
    if "heads" not in tree.children:
        return
    heads = tree["heads"].to_dataset()
    for name, array in heads.data_vars.items():
        array = array.transpose("layer", "head")
        label = f"{title(array)}: map of layers by heads."
        yield {
            "name": str(name),
            "title": title(array)[:1].upper() + title(array)[1:],
            "unit": unit(array),
            "figure": book.add(head_map(array), label, "half heads"),
            "description": str(array.attrs.get("description", "")),
        }


def _interval(effects: xr.Dataset, of: str, row: int | None = None) -> str:
    bounds = effects[f"{of}_interval"]
    bounds = bounds if row is None else bounds.isel(intervention=row)
    low, high = bounds.values
    shown = interval(low, high)
    return "no interval: one item" if shown == NOTHING else shown


def _units(one: xr.Dataset) -> str:
    units = str(one.attrs["units"])
    return "" if units in ("", "1", "fraction") else f" {units}"


def _p(value: float) -> str:
    return "1" if value == 1 else number(value)


def _level(tree: xr.DataTree) -> Part:
    """How intervals were made."""
    _, task = next(tasks(tree))
    attrs = own_effects(task).attrs
    return {
        "percent": f"{100 * float(attrs['level']):g}\N{NO-BREAK SPACE}%",
        "resamples": int(attrs["resamples"]),
        "source": str(attrs["source"]),
    }


MODES = {
    "zero": "their output is set to zero",
    "mean": "their output is replaced by its mean over the reference text",
    "resample": "their output is taken from the same position of another text, the "
    "reference text with its tokens shuffled",
    "uniform": "they attend to all visible tokens alike",
    "self": "every token attends to itself alone",
}
"""What is done to the heads."""
