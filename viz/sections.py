"""What each section of the page shows: figures, rows and sentences of one atlas."""

import json
from collections.abc import Iterator
from typing import Any

import xarray as xr
from markupsafe import Markup

from interp.probes import agreement as measures
from interp.probes.ranks import SHUFFLES
from interp.viz import atlas as reading
from interp.viz.agreement import correlation_map, overlap_plot
from interp.viz.arrays import correlation, finite, labels, title, unit
from interp.viz.curves import head_distribution, head_scatter, magnitude_curve
from interp.viz.embed import FigureBook
from interp.viz.maps import channel_map, head_map
from interp.viz.numbers import number
from interp.viz.pairs import pair_rows, told
from interp.viz.strips import colored_text
from interp.viz.tables import STREAM, criteria, massive_cells, sink_tokens, strongest
from interp.viz.tables import writers as writer_rows
from interp.viz.tokens import token_map, visible

TOKENS, ROWS = 400, 16
"""Tokens of a strip, and rows of the table of massive activations."""

Part = dict[str, Any]


def facts(atlas: xr.DataTree) -> Part:
    """The model and the texts."""
    attrs = atlas.attrs
    names = {
        "n_layers": "Layers",
        "n_heads": "Heads per layer",
        "n_kv_heads": "KV heads per layer",
        "model_type": "Architecture",
        "dtype": "Precision",
        "device": "Device",
    }
    texts = [
        {
            "name": visible(str(text.attrs.get("name", node)), 60),
            "tokens": int(text.attrs.get("n_tokens", text.sizes.get("token", 0))),
            "hash": str(text.attrs.get("input_hash", "")),
        }
        for node, text in reading.texts(atlas)
    ]
    return {
        "model": visible(str(attrs.get("model", "unnamed model")), 80),
        "load": json.dumps(str(attrs.get("model", ""))),
        "hash": str(attrs.get("model_hash", "")),
        "pairs": [(names[key], str(attrs[key])) for key in names if key in attrs],
        "texts": texts,
        "epsilon": reading.epsilon(atlas),
    }


def detector_card(atlas: xr.DataTree, name: str, book: FigureBook) -> Part:
    """The map of one detector, and how to read it."""
    array = atlas["heads"].to_dataset()[name]
    figure = head_map(array, reading.bounds(atlas, name))
    return {
        "name": name,
        "title": _capital(title(array)),
        "unit": "" if labels(array) else unit(array),
        "figure": book.add(figure, _describe(array), "half heads"),
        "description": str(array.attrs.get("description", "")),
        "source": str(array.attrs.get("source", "")),
        "random": array.attrs.get("task") == "repeated_random",
        "site": str(array.attrs.get("site", "self")),
    }


def rankings(atlas: xr.DataTree) -> Iterator[Part]:
    """The strongest heads of each kind."""
    for name in reading.detectors(atlas):
        array = atlas["heads"].to_dataset()[name]
        if labels(array):
            continue
        yield {
            "name": name,
            "title": _capital(title(array)),
            "unit": unit(array),
            "rows": strongest(array, reading.bounds(atlas, name)),
        }


def agreement(atlas: xr.DataTree, book: FigureBook) -> Part | None:
    """How detectors agree; None where fewer than two rank the heads."""
    if "heads" not in atlas.children:
        return None
    heads = atlas["heads"].to_dataset()
    kept, left_out = measures.comparable(heads)
    if len(kept) < 2:
        return None
    found, overlaps = measures.agreement(heads), measures.overlap(heads)
    sets = measures.intersections(heads)
    return {
        "told": told(found, overlaps, {str(n): title(heads[n]) for n in kept}),
        "map": book.add(
            correlation_map(found),
            f"Rank correlations of every two of {len(kept)} measurements of heads.",
        ),
        "overlap": None
        if sets.empty
        else book.add(
            overlap_plot(sets),
            "Number of heads that are among the strongest of several measurements.",
        ),
        "share": measures.SHARE,
        "rows": pair_rows(found, overlaps),
        "interval": found.attrs["interval"],
        "shuffles": SHUFFLES,
        "left_out": left_out | sets.attrs["left_out"],
    }


def sinks(node: str, text: xr.Dataset, book: FigureBook) -> Part:
    """Where one text's tokens draw attention."""
    tokens = reading.strings(text)
    maps = []
    for name, scale in (("received", "log"), ("sink_share", "linear")):
        if reading.has(text, name):
            array = text[name].transpose("layer", "token")
            layers = array.sizes["layer"]
            heading = _capital(title(array))
            label = f"{heading}: map of {layers} layers by {len(tokens)} tokens."
            figure = None
            if finite(array).any():
                figure = book.add(token_map(array, tokens, scale=scale), label)
            maps.append({"title": heading, "figure": figure})
    return _named(node, text) | {
        "n_tokens": len(tokens),
        "strip": colored_text(text, TOKENS),
        "maps": maps,
        "rows": sink_tokens(text),
    }


def activations(node: str, text: xr.Dataset, book: FigureBook) -> Part:
    """Where one text's largest activations live."""
    part = _named(node, text) | {"measured": reading.has(text, *STREAM)}
    if not part["measured"]:
        return part
    strict, loose = criteria(text)
    value, channel = text["top_value"], text["top_channel"]
    is_loud = loose.holds(text["max"], text["median_all"])
    curve = magnitude_curve(
        value, text["median_all"], channel, floor=strict.floor, ratio=strict.ratio
    )
    return part | {
        "strict": strict,
        "loose": loose,
        "curve": book.add(
            curve,
            "Largest and median magnitude of the residual stream, layer by layer.",
        ),
        "channels": book.add(
            channel_map(value, channel, text["top_token"]),
            "Map of the largest activations over layers and channels.",
        ),
        "cells": massive_cells(text)[:ROWS],
        "n_tokens": int(is_loud.any("layer_residual").sum()),
    }


def writers(atlas: xr.DataTree) -> Part:
    """The neurons behind massive activations, of all texts together."""
    rows = writer_rows(atlas)
    attrs = atlas["writers"]["writers"].attrs if rows else {}
    return {
        "rows": rows,
        "ratio": float(attrs.get("ratio", 0)),
        "floor": float(attrs.get("floor", 0)),
        "top": int(attrs.get("top", 0)),
        "interval": str(attrs.get("interval", "")),
    }


def span(atlas: xr.DataTree, book: FigureBook) -> list[Part]:
    """How far heads look."""
    found = {name: reading.detector(atlas, name) for name in reading.detectors(atlas)}
    split = found.get(reading.SPLIT)
    parts: list[Part] = []

    def add(name: str, heading: str, note: str, figure: Markup) -> None:
        parts.append({"name": name, "title": heading, "note": note, "figure": figure})

    for name in ("distance", "entropy"):
        array = found.get(name)
        if array is not None and finite(array).size:
            heading = _capital(title(array))
            label = f"{heading} of every head, layer by layer."
            figure = book.add(head_distribution(array, split), label)
            signed = name == "distance" and _looks_both_ways(array)
            add("", heading, _NOTES["signed" if signed else name], figure)
    if split is not None and finite(split).size:
        figure = book.add(head_map(split), _describe(split), "wide heads")
        note = str(split.attrs.get("description", ""))
        add(reading.SPLIT, "Local and global heads", note, figure)
    distance, sink = found.get("distance"), found.get("sinks")
    if distance is not None and sink is not None and not _looks_both_ways(distance):
        label = "Mean distance of every head against its mass on the first token."
        figure = book.add(head_scatter(distance, sink, split), label)
        note = _NOTES["scatter"].format(number(correlation(distance, sink), 2))
        add("", "Distance against the first token", note, figure)
    return parts


def codes(atlas: xr.DataTree) -> list[Part]:
    """The lines of Python that give each detector's numbers."""
    made: list[Part] = []
    for name in reading.detectors(atlas):
        lines = atlas["heads"].to_dataset()[name].attrs.get("python", "")
        code = lines if isinstance(lines, str) else "\n".join(map(str, lines))
        if code.strip():
            made.append({"name": name, "code": code.strip()})
    return made


def provenance(atlas: xr.DataTree, command: str | None) -> Part:
    """Where the numbers come from."""
    names = {
        "model": "Model",
        "model_hash": "Hash of the weights",
        "device": "Device",
        "dtype": "Precision",
        "impl": "Implementation",
        "door": "Door",
        "seed": "Seed of the intervals",
        "seeds": "Seeds of the random tokens",
        "epsilon": "Sink threshold",
    }
    attrs = atlas.attrs
    versions = reading.setting(atlas, "versions", {})
    return {
        "command": command or str(attrs.get("command", "")),
        "pairs": [(names[key], str(attrs[key])) for key in names if key in attrs],
        "intervals": str(attrs.get("intervals", "")).split("; "),
        "versions": [(str(name), str(value)) for name, value in versions.items()],
    }


_NOTES = {
    "distance": "A head that attends to its neighbors sits low; one that attends to "
    "the start of the text sits at about half the length of the text.",
    "signed": "Positive where a head looks back, negative where it looks ahead.",
    "entropy": "Zero nats is one key with all the attention; the logarithm of the "
    "number of keys would be all keys alike.",
    "scatter": "A head that parks its attention on the first token looks far without "
    "reading far: the two correlate with r = {}. A global head to the lower right "
    "really reads the distant text.",
}


def _describe(array: xr.DataArray) -> str:
    known = finite(array)
    layers, heads = array.sizes["layer"], array.sizes["head"]
    what = f"{_capital(title(array))}: map of {layers} layers by {heads} heads"
    if not known.size:
        return f"{what}; no head has a value."
    if names := labels(array):
        parts = [f"{int((known == value).sum())} {names[value]}" for value in names]
        return f"{what}; {', '.join(parts)}."
    top = strongest(array, None, 1)
    best = f"; the largest, {top[0].value}, is that of {top[0].name}" if top else ""
    return f"{what}, from {number(known.min())} to {number(known.max())}{best}."


def _looks_both_ways(array: xr.DataArray) -> bool:
    return array.attrs.get("site") == "encoder"


def _named(node: str, text: xr.Dataset) -> Part:
    name = visible(str(text.attrs.get("name", node)), 60)
    return {"id": node, "name": name}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
