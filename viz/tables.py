"""Rows of the page's tables: strongest heads, sink tokens, massive activations."""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from interp.probes.activations import LOOSE_RATIO, MassiveActivations, runs
from interp.probes.writing import NO_NEURON
from interp.viz.arrays import index, labels
from interp.viz.atlas import has, strings
from interp.viz.numbers import NOTHING, interval, number, ranges
from interp.viz.tokens import visible

STREAM = ("max", "max_channel", "median_all", "top_value", "top_token", "top_channel")
"""Arrays of the residual stream that massive activations are read from."""


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
    """A (token, channel) pair whose activation is massive in neighboring layers."""

    position: int
    token: str
    channel: int
    first: int
    """First hidden state in which it is at least loosely massive."""
    last: int
    strict: str
    """Hidden states in which it is strictly so, as ranges; a dash if in none."""
    peak: float
    """Largest magnitude, with its sign where that is known."""
    ratio: float
    """Peak over the median magnitude of its layer."""
    writer: str
    """The half of a block that added most, or a dash."""


@dataclass(frozen=True)
class Writer:
    """A neuron that writes or erases massive activations, over texts."""

    role: str
    block: int
    neuron: str
    """Its number; a word where attention writes."""
    channel: int
    share: float
    """Of what the MLP does to the cell."""
    interval: str
    contribution: float
    """What it adds to the cell, or the half where attention writes."""
    weight: float
    rank: str
    """Place of the weight by magnitude in the whole matrix."""
    n_texts: int


def criteria(text: xr.Dataset) -> tuple[MassiveActivations, MassiveActivations]:
    """When an activation of this text counts as massive, strictly and loosely."""
    options = text["massive"].attrs if "massive" in text else {}
    strict = MassiveActivations(
        ratio=float(options.get("ratio", MassiveActivations.ratio)),
        floor=float(options.get("floor", MassiveActivations.floor)),
    )
    return strict, replace(strict, ratio=min(LOOSE_RATIO, strict.ratio))


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


def massive_cells(text: xr.Dataset, loosely: bool = True) -> list[MassiveCell]:
    """Massive activations of the loudest tokens: the strictly massive, then by size.

    Args:
        text: A text's node of an atlas.
        loosely: List also those that reach the looser ratio only.
    """
    if not has(text, *STREAM):
        return []
    text = _loudest_tokens(text)
    strict, loose = criteria(text)
    tokens = dict(zip(text["token"].values.tolist(), strings(text), strict=True))
    median = text["median_all"]
    surely = runs(text, strict)
    cells = []
    for run in (runs(text, loose) if loosely else surely).to_dict("records"):
        same = surely[
            (surely["token"] == run["token"])
            & (surely["channel"] == run["channel"])
            & surely["first_layer"].between(run["first_layer"], run["last_layer"])
        ]
        spans = zip(same["first_layer"], same["last_layer"], strict=True)
        half = {"mlp": "MLP"}.get(run["writer_half"], run["writer_half"])
        middle = float(median.sel(layer_residual=run["peak_layer"]))
        cells.append(
            MassiveCell(
                position=int(run["token"]),
                token=visible(tokens[run["token"]].lstrip(" ") or tokens[run["token"]]),
                channel=int(run["channel"]),
                first=int(run["first_layer"]),
                last=int(run["last_layer"]),
                strict=ranges(i for a, b in spans for i in range(a, b + 1)),
                peak=float(run["peak"]) * (run["sign"] or 1),
                ratio=float(run["peak"]) / middle if middle else float("nan"),
                writer=f"{half} of block {run['writer_block']}" if half else NOTHING,
            )
        )
    return sorted(cells, key=lambda cell: (cell.strict == NOTHING, -abs(cell.peak)))


def writers(atlas: xr.DataTree) -> list[Writer]:
    """Neurons behind massive activations, where an atlas asked for them."""
    if "writers" not in atlas.children:
        return []
    node = atlas["writers"].to_dataset()
    if not {"writers", "writers_interval"} <= set(node.data_vars):
        return []
    rows = []
    for place in range(node.sizes["writer"]):
        one = node.isel(writer=place)
        is_neuron = int(one["neuron"]) != NO_NEURON
        moved = one["contribution"] if is_neuron else one["written"]
        rank = float(one["weight_rank"])
        rows.append(
            Writer(
                role=str(one["role"].item()),
                block=int(one["block"]),
                neuron=str(int(one["neuron"]))
                if is_neuron
                else str(one["half"].item()),
                channel=int(one["channel"]),
                share=float(one["writers"]),
                interval=interval(*one["writers_interval"].values.tolist()),
                contribution=float(moved),
                weight=float(one["weight"]),
                rank=number(round(rank)) if np.isfinite(rank) else NOTHING,
                n_texts=int(one["n_texts"]),
            )
        )
    return rows


def _loudest_tokens(text: xr.Dataset, count: int = 32) -> xr.Dataset:
    """The text without its quiet tokens, of which a long one has thousands."""
    peaks = (abs(text["max"]) / text["median_all"]).max("layer_residual").values
    loudest = text["token"].values[np.argsort(-np.nan_to_num(peaks))[:count]]
    known = np.intersect1d(text["top_token"].values, text["token"].values)
    return text.sel(token=np.union1d(loudest, known))


def _word(token: str) -> str:
    return visible(token, 12)


def _percent(part: float) -> float:
    return round(100 * min(max(part, 0.0), 1.0), 1)
