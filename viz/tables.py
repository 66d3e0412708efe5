"""Rows of the page's tables: strongest heads, sink tokens, massive activations."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.viz.arrays import index, labels
from interp.viz.atlas import has, strings
from interp.viz.numbers import NOTHING, interval, number, ranges
from interp.viz.tokens import visible


@dataclass(frozen=True)
class HeadRow:
    """One head of a ranking; places are percentages of the largest value."""

    name: str
    group: str
    value: str
    interval: str
    place: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SinkToken:
    """A token that draws attention."""

    position: int
    token: str
    before: str
    after: str
    share: float
    layer: int
    layers: str
    received: float
    followers: int
    """Tokens after it: a token near the end is seen by few, and they look near."""


@dataclass(frozen=True)
class MassiveCell:
    """A (token, channel) pair whose activation is massive in some layers."""

    position: int
    token: str
    channel: int
    strict: str
    """Hidden states in which it is massive, as ranges; a dash if in none."""
    loose: str
    """Those in which it is loosely so, the strict ones included."""
    peak: float
    ratio: float
    writer: str


def strongest(
    array: xr.DataArray, bounds: xr.DataArray | None, count: int = 6
) -> list[HeadRow]:
    """The heads with the largest values, none that is zero or unknown."""
    if labels(array):
        return []
    values = array.values.astype(np.float64)
    ranked = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=None, kind="stable")
    layers, heads = index(array, "layer"), index(array, "head")
    sizes = values if bounds is None else np.fmax(values, bounds.values[..., 1])
    largest = float(np.nanmax(np.abs(sizes), initial=0.0)) or 1.0
    rows = []
    for flat in ranked[:count]:
        row, column = (int(i) for i in np.unravel_index(flat, values.shape))
        value = float(values[row, column])
        if not np.isfinite(value) or value == 0:
            break
        low, high = (
            (np.nan, np.nan) if bounds is None else bounds.values[row, column].tolist()
        )
        known = bool(np.isfinite(low) and np.isfinite(high))
        group = array.coords.get("kv_head")
        rows.append(
            HeadRow(
                name=f"L{layers[row]}.H{heads[column]}",
                group="" if group is None else str(group.values[column]),
                value=number(value),
                interval=interval(low, high),
                place=_percent(value / largest),
                low=_percent(low / largest) if known else None,
                high=_percent(high / largest) if known else None,
            )
        )
    return rows


def sink_tokens(text: xr.Dataset, count: int = 12) -> list[SinkToken]:
    """Tokens by the largest share of heads that sink into them, then by mass.

    Without a sinking head a token needs a quarter of the text after it: those near
    the end are seen by few queries, all of them close.
    """
    if not has(text, "sink_share"):
        return []
    share = text["sink_share"].transpose("layer", "token").values.astype(np.float64)
    received = np.full_like(share, np.nan)
    if has(text, "received"):
        received = text["received"].transpose("layer", "token").values
    tokens, layers = strings(text), index(text["sink_share"], "layer")
    n_tokens = len(tokens)
    top_share = np.nan_to_num(share, nan=-1).max(axis=0)
    top_mass = np.nan_to_num(received, nan=-1).max(axis=0)
    is_early = np.arange(n_tokens) < 0.75 * n_tokens
    ranked = np.lexsort((-top_mass, -top_share))
    ranked = ranked[(top_share > 0)[ranked] | (is_early & (top_share == 0))[ranked]]
    rows = []
    for place in ranked[:count].tolist():
        shown = share if top_share[place] > 0 else received
        bare = tokens[place].lstrip(" ") or tokens[place]
        before = [*tokens[max(place - 4, 0) : place], tokens[place][: -len(bare)]]
        rows.append(
            SinkToken(
                position=place,
                token=visible(bare),
                before="".join(map(_word, before)),
                after="".join(map(_word, tokens[place + 1 : place + 4])),
                share=float(top_share[place]),
                layer=int(layers[np.argmax(np.nan_to_num(shown[:, place], nan=-1))]),
                layers=ranges(layers[np.nan_to_num(share[:, place]) > 0].tolist()),
                received=float(top_mass[place]) if top_mass[place] >= 0 else np.nan,
                followers=n_tokens - 1 - place,
            )
        )
    return rows


def massive_cells(text: xr.Dataset) -> list[MassiveCell]:
    """Massive activations, strict before loose, largest first."""
    if not has(text, "max", "max_channel", "median_all"):
        return []
    depth, tokens = text["layer_residual"].values, strings(text)
    axes = ("layer_residual", "token")
    size = np.abs(text["max"].transpose(*axes).values.astype(np.float64))
    channel = text["max_channel"].transpose(*axes).values.astype(int)
    median = text["median_all"].values.astype(np.float64)
    strict = _flags(text, "massive", size.shape)
    loose = _flags(text, "massive_loose", size.shape) | strict
    cells = []
    for place in np.flatnonzero(loose.any(axis=0)).tolist():
        for name in np.unique(channel[loose[:, place], place]).tolist():
            here = loose[:, place] & (channel[:, place] == name)
            rows = np.flatnonzero(here)
            top = int(rows[np.argmax(size[rows, place])])
            cells.append(
                MassiveCell(
                    position=place,
                    token=_trimmed(tokens[place]),
                    channel=name,
                    strict=ranges(depth[here & strict[:, place]].tolist()),
                    loose=ranges(depth[here].tolist()),
                    peak=float(size[top, place]),
                    ratio=float(size[top, place] / median[top]),
                    writer=_writer(text, place, rows[rows <= top]),
                )
            )
    return sorted(cells, key=lambda cell: (cell.strict == NOTHING, -cell.peak))


def _writer(text: xr.Dataset, place: int, rows: np.ndarray) -> str:
    """The block and half that added most on the way to the peak."""
    halves = {"attention_write": "attention", "mlp_write": "MLP"}
    depth = text["layer_residual"].values
    best, writer = 0.0, ""
    for variable, half in halves.items():
        if variable not in text.data_vars:
            continue
        grid = text[variable].transpose("layer_residual", "token").values
        added = np.abs(np.nan_to_num(grid[rows, place].astype(np.float64)))
        if added.max() > best:
            best = float(added.max())
            writer = f"{half} of block {int(depth[rows[np.argmax(added)]]) - 1}"
    return writer


def _flags(text: xr.Dataset, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in text.data_vars:
        return np.zeros(shape, dtype=bool)
    return text[name].transpose("layer_residual", "token").values.astype(bool)


def _trimmed(token: str) -> str:
    return visible(token.lstrip(" ") or token)


def _word(token: str) -> str:
    return visible(token, 12)


def _percent(part: float) -> float:
    return round(100 * min(max(part, 0.0), 1.0), 1)
