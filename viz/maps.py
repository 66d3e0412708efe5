"""Maps over layers: one value a head, one value a channel."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.viz import theme
from interp.viz.arrays import (
    HIDDEN_STATE,
    depth_of,
    finite,
    index,
    labels,
    require,
    title,
    unit,
    whole_ticks,
)
from interp.viz.numbers import NOTHING, interval, number
from interp.viz.tokens import literal


def head_map(array: xr.DataArray, bounds: xr.DataArray | None = None) -> go.Figure:
    """One cell a head: layers from left to right, heads from top to bottom.

    Colors start at zero, or lie symmetrically around it where values have both
    signs; classes (`flag_meanings`) get a color each. Cells without a value are gray.
    Thin lines separate the groups of heads that share keys and values.

    Args:
        array: One value a head, over (layer, head).
        bounds: Its interval, over (layer, head, bound).

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes.
    """
    array = require(array, ("layer", "head"), "head_map")
    layers, heads = index(array, "layer"), index(array, "head")
    values = array.values.T.astype(np.float32)
    names = labels(array)
    cells = go.Heatmap(
        x=layers,
        y=heads,
        z=values,
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **_hover(array, bounds),
        **(_class_colors(names) if names else _value_colors(array)),
    )
    figure = go.Figure([cells, *_gaps(layers, heads, values)])
    _group_lines(figure, array)
    rows = float(np.clip(420 / len(layers), 7, 15)) * len(heads)
    figure.update_layout(
        template=theme.template(),
        title=title(array),
        height=round(max(rows, 84)) + 92,
        margin={"l": 52, "r": 88, "t": 48, "b": 44},
    )
    figure.update_xaxes(
        title="layer",
        showgrid=False,
        range=_edges(layers),
        **whole_ticks(len(layers)),
    )
    figure.update_yaxes(
        title="head",
        showgrid=False,
        range=_edges(heads)[::-1],
        **whole_ticks(len(heads)),
    )
    return figure


def channel_map(
    top_value: xr.DataArray,
    top_channel: xr.DataArray,
    top_token: xr.DataArray | None = None,
    count: int = 12,
) -> go.Figure:
    """Where the largest activations live: layers by channels, signed, log color.

    A cell is gray where the channel is not among the recorded largest of its layer.

    Args:
        top_value: Largest cells of each layer, over (layer, rank), signed.
        top_channel: Their channels, over (layer, rank).
        top_token: Their token indices, over (layer, rank).
        count: Channels drawn, those with the highest peaks.

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes.
    """
    depth = depth_of(top_value)
    axes = (depth, "rank")
    largest = require(top_value, axes, "channel_map")
    channel = require(top_channel, axes, "channel_map").values.astype(int)
    layers = index(largest, depth)
    token = None
    if top_token is not None:
        token = require(top_token, axes, "channel_map").values.astype(int)
    cells = _largest_by_channel(largest.values, channel)
    peaks: dict[int, float] = {}
    for (_, name), (_, value) in cells.items():
        peaks[name] = max(peaks.get(name, 0.0), abs(value))
    names = sorted(peaks, key=lambda name: -peaks[name])[:count]
    z = np.full((len(names), len(layers)), np.nan, dtype=np.float32)
    texts = np.full(z.shape, "", dtype=object)
    for (column, name), (rank, value) in cells.items():
        if name not in names:
            continue
        cell = names.index(name), column
        z[cell] = np.sign(value) * np.log10(1 + abs(value))
        place = f"<b>channel {name}</b>, hidden state {layers[column]}"
        where = "" if token is None else f"<br>at token {token[column, rank]}"
        texts[cell] = f"{place}<br>{number(value)} {literal(unit(largest))}{where}"
    limit = float(np.nanmax(np.abs(z))) if names else 1.0
    ticks = [10.0**power for power in range(1, int(limit) + 1)]
    signed = [*(-tick for tick in ticks[::-1]), 0.0, *ticks]
    bar = {
        "title": {"text": literal(unit(largest))},
        "tickvals": [np.sign(tick) * np.log10(1 + abs(tick)) for tick in signed],
        "ticktext": [_power(tick) for tick in signed],
    }
    rows = [f"ch {name}" for name in names]
    figure = go.Figure(
        [
            go.Heatmap(
                x=layers,
                y=rows,
                z=z,
                zmin=-limit,
                zmax=limit,
                autocolorscale=True,
                colorbar=bar,
                text=texts.tolist(),
                hovertemplate="%{text}<extra></extra>",
                hoverongaps=False,
                xgap=1,
                ygap=1,
            ),
            *_gaps(layers, rows, z),
        ]
    )
    figure.update_layout(
        template=theme.template(),
        title="Largest activations by channel",
        height=18 * max(len(names), 5) + 100,
    )
    figure.update_xaxes(
        title=HIDDEN_STATE,
        showgrid=False,
        range=_edges(layers),
        **whole_ticks(len(layers)),
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _hover(array: xr.DataArray, bounds: xr.DataArray | None) -> dict:
    """Head, value, unit and interval; as little text as they need, for large models."""
    names, shape = labels(array), (array.sizes["head"], array.sizes["layer"])
    hover: dict = {"text": np.full(shape, "").tolist()}
    head = "<b>L%{x}.H%{y}</b>"
    if "kv_head" in array.coords:
        group = np.broadcast_to(array["kv_head"].values[:, None], shape)
        hover["customdata"] = group.astype(np.int16)
        head += " of KV group %{customdata}"
    shown, after = f"%{{z:,.3~r}} {literal(unit(array))}", "%{text}"
    if names:
        shown, after = "%{text}", ""
        hover["text"] = [
            [names.get(int(v), "") if np.isfinite(v) else "" for v in row]
            for row in array.values.T
        ]
    elif bounds is not None:
        axes = ("head", "layer", "bound")
        hover["text"] = [
            ["" if s == NOTHING else f"<br>interval {s}" for s in spans]
            for spans in _intervals(require(bounds, axes, "head_map").values)
        ]
    if not any(map(any, hover["text"])):
        hover["text"], after = None, ""
    measure = literal(title(array))
    hover["hovertemplate"] = f"{head}<br>{measure}: {shown}{after}<extra></extra>"
    return hover


def _intervals(bounds: np.ndarray) -> list[list[str]]:
    return [[interval(low, high) for low, high in row] for row in bounds.tolist()]


def _value_colors(array: xr.DataArray) -> dict:
    values = finite(array)
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    else:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = low + 1.0
    bar = {"title": {"text": literal(unit(array))}}
    return {
        "zmin": float(low),
        "zmax": float(high),
        "autocolorscale": True,
        "colorbar": bar,
    }


_GRAY = "#a3a8ad"


def _class_colors(names: dict[int, str]) -> dict:
    """A flat color for each class; signed ones diverge, of two the first is gray."""
    values = sorted(names)
    colors = theme.MARKS
    if values == [-1, 0, 1]:
        colors = (colors[0], _GRAY, colors[1])
    elif values == [0, 1]:
        colors = (_GRAY, colors[1])
    edges = np.linspace(0, 1, len(values) + 1)
    steps = [
        [float(edge), colors[i % len(colors)]]
        for i in range(len(values))
        for edge in edges[i : i + 2]
    ]
    span = (values[-1] - values[0]) or 1
    half = span / max(2 * (len(values) - 1), 2)
    low, high = values[0] - half, values[-1] + half
    middle = low + (edges[:-1] + edges[1:]) / 2 * (high - low)
    bar = {
        "tickvals": middle.tolist(),
        "ticktext": [literal(names[value]) for value in values],
    }
    return {"zmin": low, "zmax": high, "colorscale": steps, "colorbar": bar}


def _gaps(x: object, y: object, z: np.ndarray) -> list[go.Heatmap]:
    """A gray layer where there is no value, so that absent never looks like zero."""
    if np.isfinite(z).all():
        return []
    gray = theme.NEUTRAL
    return [
        go.Heatmap(
            x=x,
            y=y,
            z=np.where(np.isfinite(z), np.nan, 1).astype(np.float32),
            colorscale=[[0, gray], [1, gray]],
            opacity=0.24,
            showscale=False,
            hovertemplate="no value<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            name="no value",
        )
    ]


def _group_lines(figure: go.Figure, array: xr.DataArray) -> None:
    if "kv_head" not in array.coords:
        return
    group, heads = array["kv_head"].values, index(array, "head")
    if len(set(group)) == len(group):
        return
    for at in np.flatnonzero(group[1:] != group[:-1]):
        figure.add_hline(
            y=float(heads[at] + heads[at + 1]) / 2,
            line={"width": 1, "color": "rgba(128,128,128,0.75)"},
        )


def _largest_by_channel(
    values: np.ndarray, channels: np.ndarray
) -> dict[tuple[int, int], tuple[int, float]]:
    """`(layer index, channel)` and the `(rank, value)` of its largest magnitude."""
    cells: dict[tuple[int, int], tuple[int, float]] = {}
    for (row, rank), value in np.ndenumerate(values):
        key = (row, int(channels[row, rank]))
        if np.isfinite(value) and abs(value) > abs(cells.get(key, (0, 0.0))[1]):
            cells[key] = (rank, float(value))
    return cells


def _edges(values: np.ndarray) -> list[float]:
    return [float(values[0]) - 0.5, float(values[-1]) + 0.5]


def _power(value: float) -> str:
    sign = "\N{MINUS SIGN}" if value < 0 else ""
    size = abs(value)
    return sign + (f"{size / 1000:g}k" if size >= 1000 else f"{size:g}")
