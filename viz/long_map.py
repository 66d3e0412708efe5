"""A window of a long attention map: cells on one of three scales, tokens when near."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from interp.errors import InputError
from interp.viz import theme
from interp.viz.arrays import require, title, unit
from interp.viz.numbers import number
from interp.viz.tokens import literal, visible

SCALES = ("linear", "log", "rank")

DIMS = ("query_block", "key_block")
NEAR = 32
"""Cells along an axis up to which each is labelled with its token."""

TOLD = 128
"""... and up to which hovering names the two tokens of a cell."""

DEPTH = 1e-6
"""Smallest weight, relative to the largest, that log colors tell apart."""

HANDLES = 40
"""Unseen marks along each side of the window, which a box can catch."""


@dataclass(frozen=True)
class Scale:
    """Colors of the cells: their place from 0 on, and what a color stands for.

    Attributes:
        places: Of each cell; NaN where there is no pair.
        top: Place of the last color.
        ticks: Places and labels of the color bar.
    """

    places: np.ndarray
    top: float
    ticks: tuple[list[float], list[str]]


def long_map(
    window: xr.Dataset,
    *,
    values: str = "block_max",
    scale: str = "log",
    sinks: int = 0,
    diagonal: int = 0,
) -> go.Figure:
    """Queries from top to bottom, keys from left to right, a color for each cell.

    Args:
        window: What `interp.LongMap.window` returns.
        values: `block_max`, which shows a single large weight at any zoom, or
            `block_mean`.
        scale: Of the colors: `linear` from zero, `log`, or `rank` among the cells.
        sinks: First keys that the colors leave out of account, as a sink would take the
            whole scale; they are drawn in the last color that they reach.
        diagonal: Likewise, the nearest keys of each query, its own included.

    Raises:
        InputError: Not a window, or an unknown scale.
        ShapeError: Other axes.
    """
    if not isinstance(window, xr.Dataset) or values not in window:
        raise InputError(
            "long_map draws a window of a map; got "
            f"{type(window).__name__} without {values}. Pass what "
            "interp.long_map(...).window() returns."
        )
    array = require(window[values], DIMS, "long_map")
    cells = array.values.astype(np.float64)
    colors = scaled(cells, counted(window, sinks, diagonal), scale)
    size = int(window.attrs["size"])
    rows, columns = (window[name].values + (size - 1) / 2 for name in ("query", "key"))
    names = _cell_names(window)
    shown = "%{customdata:.4~g}" + f" {literal(unit(array))}"
    place = "%{text}" if names is not None else "query %{y:,.0f}, key %{x:,.0f}"
    said = "attention weight" if size == 1 else literal(title(array))
    bar = {"title": {"text": literal(unit(array))}}
    bar |= dict(zip(("tickvals", "ticktext"), colors.ticks, strict=True))
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=rows,
            z=colors.places.astype(np.float32),
            zmin=0,
            zmax=colors.top,
            customdata=cells.astype(np.float32),
            text=names,
            autocolorscale=True,
            colorbar=bar,
            hoverongaps=False,
            hovertemplate=f"{place}<br>{said}: {shown}<extra></extra>",
        )
    )
    figure.update_layout(
        template=theme.template(),
        title=literal(heading(window)),
        height=620,
        margin={"l": 76, "r": 88, "t": 48, "b": 64},
    )
    for axis, name, dim in (("xaxis", "key", 1), ("yaxis", "query", 0)):
        first = float(window[name].values[0])
        ends = [first - 0.5, first + size * cells.shape[dim] - 0.5]
        figure.layout[axis].update(
            title=name,
            range=ends if name == "key" else ends[::-1],
            showgrid=False,
            **_ticks(window, name),
        )
    if 0.4 < cells.shape[0] / cells.shape[1] < 2.5:
        figure.update_yaxes(scaleanchor="x", constrain="domain")
        figure.update_xaxes(constrain="domain")
    return figure


def heading(window: xr.Dataset) -> str:
    """What the window shows: the head, and how much of the text a cell is."""
    attrs = window.attrs
    size = int(attrs["size"])
    cell = "single weights" if size == 1 else f"cells of {size} x {size} tokens"
    site = "" if attrs.get("site", "self") == "self" else f"{attrs['site']} "
    return f"{site}L{attrs['layer']}.H{attrs['head']}: {cell}"


def counted(window: xr.Dataset, sinks: int = 0, diagonal: int = 0) -> np.ndarray:
    """Cells that the colors are chosen by, `[query_block, key_block]`.

    Args:
        window: Of a map.
        sinks: First keys that are left out.
        diagonal: Nearest keys of each query that are left out.
    """
    size = int(window.attrs["size"])
    query, key = window["query"].values[:, None], window["key"].values[None]
    far = query - key - (size - 1) >= diagonal if diagonal else np.array([[True]])
    return np.broadcast_to((key >= sinks) & far, (len(query), key.shape[1]))


def scaled(cells: np.ndarray, counted: np.ndarray, scale: str) -> Scale:
    """Places of the cells on a scale of colors.

    Args:
        cells: Values; NaN where there is no pair.
        counted: Those that choose the scale; all, where none is left.
        scale: One of `SCALES`.

    Raises:
        InputError: An unknown scale.
    """
    if scale not in SCALES:
        raise InputError(
            f"The scale {scale!r} was asked for; there are {', '.join(SCALES)}. "
            "Choose one of them."
        )
    cells = np.asarray(cells, np.float64)
    known = cells[counted & np.isfinite(cells)]
    known = known if known.size else cells[np.isfinite(cells)]
    high = float(known.max(initial=0.0)) or 1.0
    if scale == "linear":
        ticks = np.linspace(0, high, 5)
        return Scale(cells, high, (ticks.tolist(), list(map(number, ticks))))
    if scale == "log":
        low = max(float(known[known > 0].min(initial=high)), DEPTH * high)
        low = min(low, high / 10)
        places = np.log10(np.fmax(cells, low) / low)
        places[np.isnan(cells)] = np.nan
        powers = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
        labels = [f"{10.0**power:g}" for power in powers]
        ticks = (powers - np.log10(low)).tolist()
        return Scale(places, float(np.log10(high / low)), (ticks, labels))
    ordered = np.sort(known)
    below, upto = (np.searchsorted(ordered, cells, side) for side in ("left", "right"))
    places = (below + upto) / (2 * max(len(ordered), 1))
    places[np.isnan(cells)] = np.nan
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    labels = [number(q) for q in np.quantile(ordered, shares)] if known.size else []
    return Scale(places, 1.0, (shares[: len(labels)], labels))


def with_handles(figure: go.Figure, window: xr.Dataset) -> go.Figure:
    """The same figure with unseen marks, as a box chooses no cells of a heatmap.

    Args:
        figure: As `long_map` draws it.
        window: What it shows.
    """
    size, unseen = int(window.attrs["size"]), {"opacity": 0}
    rows, columns = (
        np.linspace(ends[0], ends[-1] + size - 1, min(HANDLES, size * len(ends)))
        for ends in (window["query"].values, window["key"].values)
    )
    return figure.add_scatter(
        x=np.tile(columns, len(rows)),
        y=np.repeat(rows, len(columns)),
        mode="markers",
        marker={"size": 8, "opacity": 0},
        selected={"marker": unseen},
        unselected={"marker": unseen},
        hoverinfo="skip",
        showlegend=False,
        name="",
    )


def cell_table(window: xr.Dataset) -> pd.DataFrame:
    """A row for each cell that has a pair: where it is, its tokens and its values."""
    table = window.to_dataframe().dropna(subset="block_mean")
    return table.reset_index(drop=True)


def _cell_names(window: xr.Dataset) -> list[list[str]] | None:
    """The two tokens of each cell, where there are not too many to say."""
    axes = [_words(window, name, 24) for name in ("query", "key")]
    if any(not words or len(words) > TOLD for words in axes):
        return None
    starts = (window[name].values.tolist() for name in ("query", "key"))
    rows, columns = (
        [f"{name} {start:,} {word}" for start, word in zip(places, words, strict=True)]
        for name, places, words in zip(("query", "key"), starts, axes, strict=True)
    )
    return [[f"{row}<br>{column}" for column in columns] for row in rows]


def _ticks(window: xr.Dataset, name: str) -> dict:
    words = _words(window, name, 12)
    if not words or len(words) > NEAR:
        return {"tickformat": ",d", "nticks": 9}
    size = int(window.attrs["size"])
    places = window[name].values + (size - 1) / 2
    more = "\u2026" if size > 1 else ""
    ticks = {"tickvals": places.tolist(), "ticktext": [word + more for word in words]}
    return ticks | ({"tickangle": -60} if name == "key" else {})


def _words(window: xr.Dataset, name: str, limit: int) -> Sequence[str]:
    """Tokens along an axis as plotly shows them; empty where there are none."""
    tokens = window.coords.get(f"{name}_token")
    if tokens is None:
        return []
    return [literal(visible(str(token), limit)) for token in tokens.values]
