"""Curves and distributions over layers."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.viz import theme
from interp.viz.arrays import finite, index, labels, require, title, unit
from interp.viz.numbers import number
from interp.viz.tokens import literal

LARGEST, RATIO = 100.0, 1000.0
"""A massive activation exceeds both: a magnitude, and a multiple of the median.

Source: arXiv:2402.17762.
"""


def magnitude_curve(
    top_value: xr.DataArray,
    median_all: xr.DataArray,
    top_channel: xr.DataArray | None = None,
) -> go.Figure:
    """Largest and median magnitude of the residual stream, layer by layer, log axis.

    The channel of the largest magnitude is written where it changes. The dashed line
    is what a massive activation exceeds: 100, and 1,000 times the median.

    Args:
        top_value: Largest cells of each layer, over (layer, rank), signed.
        median_all: Median magnitude of each layer, over (layer).
        top_channel: Channels of the largest cells, over (layer, rank).

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes.
    """
    depth = "layer_residual" if "layer_residual" in top_value.dims else "layer"
    values = require(top_value, (depth, "rank"), "magnitude_curve")
    median = require(median_all, (depth,), "magnitude_curve").values
    layers, measure = index(values, depth), literal(unit(values))
    largest = np.abs(values.values[:, 0]).astype(np.float64)
    second = np.abs(values.values[:, -1]).astype(np.float64)
    names = [""] * len(layers)
    if top_channel is not None:
        channel = require(top_channel, (depth, "rank"), "magnitude_curve").values[:, 0]
        names = [f", channel {int(name)}" for name in channel]
    threshold = np.maximum(LARGEST, RATIO * median)
    blue, orange = theme.LIGHT.categories[0], theme.LIGHT.categories[1]
    figure = go.Figure(
        [
            _line(
                layers,
                second,
                f"rank {values.sizes['rank']}",
                blue,
                width=1,
                dash="dot",
            ),
            _line(layers, largest, "largest", blue, width=2.5, mode="lines+markers"),
            _line(layers, median, "median", "#8a8f94", width=2),
            _line(layers, threshold, "massive above", orange, width=1.5, dash="dash"),
        ]
    )
    figure.data[1].update(
        text=[
            f"largest: {number(size)} {measure}{name}"
            for size, name in zip(largest, names, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    if top_channel is not None:
        _name_channels(figure, layers, largest, channel)
    figure.update_layout(
        template=theme.template(),
        title=f"{title(values)}: largest against median",
        height=340,
        hovermode="x unified",
    )
    known = np.concatenate([largest, median])
    known = known[np.isfinite(known) & (known > 0)]
    figure.update_yaxes(type="log", title=f"magnitude ({measure})", dtick=1)
    if known.size:
        low, high = np.log10(known.min()), np.log10(max(known.max(), LARGEST))
        figure.update_yaxes(range=[float(low) - 0.2, float(high) + 0.55])
    figure.update_xaxes(
        title="hidden state (0 is the embedding, l follows block l \N{MINUS SIGN} 1)"
    )
    return figure


def head_distribution(
    array: xr.DataArray, classes: xr.DataArray | None = None
) -> go.Figure:
    """Every head as a point over its layer, with median and quartiles of the layer.

    The axis is logarithmic where positive values span more than a factor of 30.

    Args:
        array: One value a head, over (layer, head).
        classes: The heads' classes, over (layer, head), as color and symbol.

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes.
    """
    array = require(array, ("layer", "head"), "head_distribution")
    layers, heads = index(array, "layer"), index(array, "head")
    values = array.values.astype(np.float64)
    known = finite(array)
    quarter, half, upper = (_quantile(values, q) for q in (0.25, 0.5, 0.75))
    accent = "#7d858c"
    figure = go.Figure(
        [
            _line(layers, upper, "quartiles", accent, width=0),
            _line(layers, quarter, "middle half of the heads", accent, width=0),
            _line(layers, half, "median head", accent, width=2),
        ]
    )
    figure.data[0].update(showlegend=False, hoverinfo="skip")
    figure.data[1].update(
        fill="tonexty", fillcolor="rgba(125,133,140,0.22)", hoverinfo="skip"
    )
    place = (np.arange(len(heads)) - (len(heads) - 1) / 2) / max(len(heads), 2) * 0.6
    x = layers[:, None] + place[None, :]
    text = np.array([[f"L{layer}.H{head}" for head in heads] for layer in layers])
    for name, color, symbol, chosen in _groups(array, classes):
        mask = chosen & np.isfinite(values)
        figure.add_scatter(
            x=x[mask].astype(np.float32),
            y=values[mask].astype(np.float32),
            text=text[mask].tolist(),
            mode="markers",
            name=name,
            showlegend=classes is not None,
            marker={"color": color, "symbol": symbol, "size": 6, "opacity": 0.85},
            hovertemplate="<b>%{text}</b><br>"
            + f"{literal(title(array))}: %{{y:.3~g}} {literal(unit(array))}"
            + f"{f', {name}' if name else ''}<extra></extra>",
        )
    figure.update_layout(template=theme.template(), title=title(array), height=300)
    figure.update_xaxes(title="layer", range=[layers[0] - 0.6, layers[-1] + 0.6])
    figure.update_yaxes(title=f"{literal(title(array))} ({literal(unit(array))})")
    positive = known.size and known.min() > 0
    if positive and known.max() > 30 * known.min():
        figure.update_yaxes(type="log", dtick=1)
    else:
        figure.update_yaxes(rangemode="tozero")
    return figure


def head_scatter(
    horizontal: xr.DataArray,
    vertical: xr.DataArray,
    classes: xr.DataArray | None = None,
) -> go.Figure:
    """Two quantities of every head against each other.

    Args:
        horizontal: One value a head, over (layer, head); log axis if it spans far.
        vertical: One value a head, over (layer, head).
        classes: The heads' classes, over (layer, head), as color and symbol.

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes.
    """
    axes = ("layer", "head")
    horizontal = require(horizontal, axes, "head_scatter")
    vertical = require(vertical, axes, "head_scatter")
    x, y = horizontal.values, vertical.values
    text = np.array(
        [
            [f"L{layer}.H{head}" for head in index(vertical, "head")]
            for layer in index(vertical, "layer")
        ]
    )
    figure = go.Figure()
    for name, color, symbol, chosen in _groups(vertical, classes):
        mask = chosen & np.isfinite(x) & np.isfinite(y)
        figure.add_scatter(
            x=x[mask].astype(np.float32),
            y=y[mask].astype(np.float32),
            text=text[mask].tolist(),
            mode="markers",
            name=name,
            showlegend=classes is not None,
            marker={"color": color, "symbol": symbol, "size": 7, "opacity": 0.8},
            hovertemplate="<b>%{text}</b><br>"
            + f"{literal(title(horizontal))}: %{{x:.3~g}} {literal(unit(horizontal))}"
            + f"<br>{literal(title(vertical))}: %{{y:.3~g}} {literal(unit(vertical))}"
            + "<extra></extra>",
        )
    figure.update_layout(
        template=theme.template(),
        title=f"{title(vertical)} against {title(horizontal)}",
        height=320,
    )
    known = finite(horizontal)
    if known.size and 0 < known.min() * 30 < known.max():
        figure.update_xaxes(type="log")
    figure.update_xaxes(title=f"{literal(title(horizontal))} ({unit(horizontal)})")
    figure.update_yaxes(title=f"{literal(title(vertical))} ({unit(vertical)})")
    return figure


def _line(
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    color: str,
    *,
    width: float,
    dash: str = "solid",
    mode: str = "lines",
) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=np.asarray(y, dtype=np.float32),
        name=name,
        mode=mode,
        line={"color": color, "width": width, "dash": dash},
        marker={"size": 6},
        hovertemplate=f"{name}: %{{y:.3~g}}<extra></extra>",
    )


def _groups(array: xr.DataArray, classes: xr.DataArray | None) -> list[tuple]:
    """`(name, color, symbol, mask)` of each class, or one group of all heads."""
    colors, symbols = theme.LIGHT.categories, ("circle", "diamond", "square", "cross")
    if classes is None:
        return [("", colors[0], symbols[0], np.ones(array.shape, dtype=bool))]
    classes = require(classes, ("layer", "head"), "classes")
    names = labels(classes) or {int(v): f"{v:g}" for v in np.unique(finite(classes))}
    if sorted(names) == [-1, 0, 1]:
        colors, symbols = (
            (colors[0], "#8a8f94", colors[1]),
            ("square", "circle", "diamond"),
        )
    return [
        (names[value], colors[i % len(colors)], symbols[i % 4], classes.values == value)
        for i, value in enumerate(sorted(names))
    ]


def _quantile(values: np.ndarray, share: float) -> np.ndarray:
    """Quantile of each row's numbers; NaN for a row without any."""
    result = np.full(len(values), np.nan)
    for i, row in enumerate(values):
        known = row[np.isfinite(row)]
        if known.size:
            result[i] = np.quantile(known, share)
    return result


def _name_channels(
    figure: go.Figure, layers: np.ndarray, largest: np.ndarray, channel: np.ndarray
) -> None:
    """Write the channel where it changes, unless the last label stands too near."""
    last = -np.inf
    for i, name in enumerate(channel):
        changed = i == 0 or name != channel[i - 1]
        known = np.isfinite(largest[i]) and largest[i] > 0
        if not (changed and known) or i - last < max(2, len(layers) / 16):
            continue
        last = i
        figure.add_annotation(
            x=layers[i],
            y=float(np.log10(largest[i])),
            text=f"ch {int(name)}",
            showarrow=False,
            yshift=14,
        )
