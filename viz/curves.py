"""Curves and distributions over layers."""

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
from interp.viz.numbers import number
from interp.viz.tokens import literal


def magnitude_curve(
    top_value: xr.DataArray,
    median_all: xr.DataArray,
    top_channel: xr.DataArray | None = None,
    *,
    floor: float = 100.0,
    ratio: float = 1000.0,
) -> go.Figure:
    """Largest and median magnitude of the residual stream, layer by layer, log axis.

    Each channel that holds the maximum is named at its peak. The band reaches down to
    the smallest of the recorded ones. The dashed line is what a massive activation
    exceeds: the floor, and the ratio times the median.

    Args:
        top_value: Largest cells of each layer, over (layer, rank), signed.
        median_all: Median magnitude of each layer, over (layer).
        top_channel: Channels of the largest cells, over (layer, rank).
        floor: Magnitude that a massive activation exceeds.
        ratio: Times the median that it reaches.

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes.

    Source:
        arXiv:2402.17762 for the criterion.
    """
    depth = depth_of(top_value)
    values = require(top_value, (depth, "rank"), "magnitude_curve")
    median = require(median_all, (depth,), "magnitude_curve").values
    layers, measure = index(values, depth), literal(unit(values))
    sizes = np.abs(values.values).astype(np.float64)
    largest, least = sizes[:, 0], sizes[:, -1]
    names, channel = [""] * len(layers), None
    if top_channel is not None:
        channel = require(top_channel, (depth, "rank"), "magnitude_curve").values[:, 0]
        names = [f", channel {int(name)}" for name in channel]
    threshold = np.maximum(floor, ratio * median)
    blue, orange = theme.MARKS[:2]
    figure = go.Figure(
        [
            _line(layers, least, f"the {sizes.shape[1]} largest", blue, width=0),
            _line(layers, largest, "largest", blue, width=2.5, mode="lines+markers"),
            _line(layers, threshold, "massive above", orange, width=1.5, dash="dash"),
            _line(layers, median, "median", theme.NEUTRAL, width=2),
        ]
    )
    figure.data[0].update(showlegend=False, hoverinfo="skip", hovertemplate=None)
    figure.data[1].update(
        fill="tonexty",
        fillcolor="rgba(42,134,196,0.16)",
        text=[
            f"largest: {number(size)} {measure}{name}"
            for size, name in zip(largest, names, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    if channel is not None:
        _name_channels(figure, layers, largest, channel)
    figure.update_layout(
        template=theme.template(),
        title=f"{title(values)}: largest against median",
        height=340,
        hovermode="x unified",
    )
    known = np.concatenate([largest, median])
    known = known[np.isfinite(known) & (known > 0)]
    figure.update_yaxes(
        type="log", title=f"magnitude ({measure})", dtick=1, tickformat=",~g"
    )
    if known.size:
        low, high = np.log10(known.min()), np.log10(max(known.max(), floor))
        figure.update_yaxes(range=[float(low) - 0.2, float(high) + 0.55])
    figure.update_xaxes(
        title=HIDDEN_STATE,
        range=[layers[0] - 0.5, layers[-1] + 0.5],
        **whole_ticks(len(layers)),
    )
    return figure


def head_distribution(
    array: xr.DataArray, classes: xr.DataArray | None = None
) -> go.Figure:
    """Every head as a point over its layer, with median and quartiles of the layer.

    The axis is logarithmic where positive values span more than a factor of 100.

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
    figure = go.Figure(
        [
            _line(layers, upper, "quartiles", theme.NEUTRAL, width=0),
            _line(layers, quarter, "middle half of the heads", theme.NEUTRAL, width=0),
            _line(layers, half, "median head", theme.NEUTRAL, width=2),
        ]
    )
    figure.data[0].update(showlegend=False, hoverinfo="skip", hovertemplate=None)
    figure.data[1].update(
        fill="tonexty",
        fillcolor="rgba(134,141,148,0.22)",
        hoverinfo="skip",
        hovertemplate=None,
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
            + f"{literal(title(array))}: %{{y:,.3~r}} {literal(unit(array))}"
            + f"{f', {name}' if name else ''}<extra></extra>",
        )
    figure.update_layout(template=theme.template(), title=title(array), height=300)
    figure.update_xaxes(
        title="layer",
        range=[layers[0] - 0.6, layers[-1] + 0.6],
        **whole_ticks(len(layers)),
    )
    figure.update_yaxes(title=f"{literal(title(array))} ({literal(unit(array))})")
    figure.update_yaxes(**_wide_axis(known))
    return figure


def head_scatter(
    horizontal: xr.DataArray,
    vertical: xr.DataArray,
    classes: xr.DataArray | None = None,
) -> go.Figure:
    """Two quantities of every head against each other.

    Args:
        horizontal: One value a head, over (layer, head).
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
            + f"{literal(title(horizontal))}: %{{x:,.3~r}} {literal(unit(horizontal))}"
            + f"<br>{literal(title(vertical))}: %{{y:,.3~r}} {literal(unit(vertical))}"
            + "<extra></extra>",
        )
    figure.update_layout(
        template=theme.template(),
        title=f"{title(vertical)} against {title(horizontal)}",
        height=320,
    )
    figure.update_xaxes(
        title=f"{literal(title(horizontal))} ({literal(unit(horizontal))})",
        rangemode="tozero",
    )
    figure.update_yaxes(title=f"{literal(title(vertical))} ({literal(unit(vertical))})")
    return figure


def _wide_axis(known: np.ndarray) -> dict:
    """A log axis where positive values span more than a factor of 100, else linear."""
    if not (known.size and 0 < known.min() * 100 < known.max()):
        return {"rangemode": "tozero"}
    low, high = np.log10(known.min()), np.log10(known.max())
    ticks = [
        factor * 10.0**power
        for power in range(int(np.floor(low)), int(np.ceil(high)) + 1)
        for factor in (1, 3)
    ]
    return {
        "type": "log",
        "range": [float(low) - 0.12, float(high) + 0.12],
        "tickvals": ticks,
        "ticktext": [f"{tick:,g}" for tick in ticks],
    }


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
        hovertemplate=f"{name}: %{{y:,.3~r}}<extra></extra>",
    )


def _groups(array: xr.DataArray, classes: xr.DataArray | None) -> list[tuple]:
    """`(name, color, symbol, mask)` of each class, or one group of all heads."""
    colors, symbols = theme.MARKS, ("circle", "diamond", "square", "cross")
    if classes is None:
        return [("", colors[0], symbols[0], np.ones(array.shape, dtype=bool))]
    classes = require(classes, ("layer", "head"), "classes")
    names = labels(classes) or {int(v): f"{v:g}" for v in np.unique(finite(classes))}
    if sorted(names) == [-1, 0, 1]:
        colors, symbols = (
            (colors[0], theme.NEUTRAL, colors[1]),
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
    """Write each run's channel at its peak, unless a higher one stands too near."""
    starts = np.flatnonzero(np.diff(channel, prepend=channel[0] - 1))
    sizes = np.nan_to_num(largest)
    runs = np.split(np.arange(len(channel)), starts[1:])
    peaks = sorted(
        (int(run[np.argmax(sizes[run])]) for run in runs), key=lambda i: -sizes[i]
    )
    named: list[int] = []
    for i in peaks:
        if sizes[i] <= 0 or any(abs(i - j) < max(2, len(layers) / 16) for j in named):
            continue
        named.append(i)
        is_slope = (
            sizes[max(i - 1, 0)] > sizes[i]
            or sizes[min(i + 1, len(sizes) - 1)] > sizes[i]
        )
        figure.add_annotation(
            x=layers[i],
            y=float(np.log10(sizes[i])),
            text=f"ch {int(channel[i])}",
            showarrow=False,
            yshift=-14 if is_slope else 14,
        )
