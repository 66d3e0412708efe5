"""Tables of attention against saliency: agreement, areas under curves, own errors."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from interp.viz.crossattn_reading import interval, named, pairs, utterances
from interp.viz.numbers import NOTHING, decimals, number, percent

MEASURES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "topk": "Largest in common",
    "js_distance": "Jensen-Shannon distance",
    "peak": "Peaks apart",
}
"""Columns of the table of agreement."""

Part = dict[str, Any]


def measures(agreement: xr.Dataset) -> list[tuple[str, str, str]]:
    """Key, name and unit of each measure that there is."""
    known = [str(each) for each in agreement["measure"].values]
    units = dict.fromkeys(known, "1")
    if "measure_units" in agreement:
        said = map(str, agreement["measure_units"].values)
        units = dict(zip(known, said, strict=True))
    names = {key: MEASURES.get(key, key) for key in known}
    return [(key, names[key], units[key].removeprefix("1")) for key in known]


def agreement_rows(agreement: xr.Dataset) -> Iterator[Part]:
    """The table of agreement: every saliency against the aggregated attention."""
    for space, method in pairs(agreement):
        one = agreement.sel(space=space, attribution=method)
        cells = []
        for measure, _, _ in measures(agreement):
            digits = 0 if measure == "peak" else 2
            null = one["overall_null"].sel(measure=measure).values
            cells.append(
                {
                    "value": decimals(at(one, "overall", measure), digits),
                    "interval": between(*interval(one, measure), digits=digits),
                    "null": between(*null, digits=digits),
                }
            )
        p = at(one, "overall_p", "pearson")
        yield {"name": named(method, space), "cells": cells, "p": number(p, 2)}


def baseline_rows(agreement: xr.Dataset) -> Part | None:
    """Cheap explanations made of attention, each against every saliency."""
    if "of_baseline" not in agreement:
        return None
    array = agreement["of_baseline"].sel(measure="pearson")
    names = [str(each) for each in array["baseline"].values]
    return {
        "names": [name.replace("_", " ") for name in names],
        "rows": [
            {
                "name": named(method, space),
                "cells": [decimals(one.sel(baseline=name).item()) for name in names],
            }
            for space, method in pairs(agreement)
            for one in [array.sel(space=space, attribution=method)]
        ],
    }


def area_rows(tree: xr.DataTree) -> Iterator[Part]:
    """The table of areas under the curves."""
    if "faithfulness" not in tree.children:
        return
    areas = tree["faithfulness"].to_dataset()
    for name in map(str, areas["explanation"].values):
        cells = []
        for direction in ("deletion", "insertion"):
            one = areas.sel({"direction": direction, "explanation": name})
            cells += [
                (decimals(one["auc"].item(), 3), _of(one, "auc")),
                (decimals(one["auc_gain"].item(), 3), _of(one, "auc_gain"))
                if name != "random"
                else (NOTHING, ""),
            ]
        yield {"name": name.replace("_", " ").replace("@", ", "), "cells": cells}


def error_rows(tree: xr.DataTree) -> Iterator[Part]:
    """What the methods themselves get wrong, by the quantity."""
    gaps, noise = _missed(tree), []
    for name in utterances(tree):
        node = tree[name].to_dataset()
        if "monte_carlo_error" in node:
            saliency = node["saliency"].sel(attribution="perturbation")
            error = node["monte_carlo_error"].mean("position")
            noise += (error / saliency.mean("position")).values.ravel().tolist()
    for what, values in (
        ("Integrated gradients miss of their sum (median over tokens)", gaps),
        ("Standard error of perturbation over its mean (median over tokens)", noise),
    ):
        known = np.array(values)[np.isfinite(values)] if values else np.array([])
        if known.size:
            yield {"what": what, "value": percent(float(np.median(known)))}


def missed_of_sum(tree: xr.DataTree) -> float:
    """What integrated gradients over the input miss of their sum, median over tokens.

    A fraction; 0 where there are none.
    """
    shares = _missed(tree, ["input"])
    return float(np.nanmedian(shares)) if shares else 0.0


def _missed(tree: xr.DataTree, spaces: Any = slice(None)) -> list[float]:
    """Of every token, the share of their sum that integrated gradients miss."""
    shares = []
    for name in utterances(tree):
        node = tree[name].to_dataset()
        if "completeness_error" in node:
            own = node.sel(space=spaces)
            missed = own["completeness_error"] / abs(own["completeness_gap"])
            shares += missed.values.ravel().tolist()
    return shares


def at(one: xr.Dataset, name: str, measure: str) -> float:
    """A number of one saliency, in one measure."""
    return one[name].sel(measure=measure).item()


def _of(one: xr.Dataset, name: str) -> str:
    return between(*one[f"{name}_interval"].values, digits=3)


def between(low: float, high: float, digits: int = 2) -> str:
    """Two bounds as text; an em dash where there are none."""
    shown = decimals(low, digits), decimals(high, digits)
    return NOTHING if NOTHING in shown else " to ".join(shown)
