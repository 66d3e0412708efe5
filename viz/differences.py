"""Two runs side by side: the same detector of both, and what differs."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.errors import ShapeError
from interp.viz import theme
from interp.viz.arrays import index, require, title, unit, whole_ticks
from interp.viz.numbers import number
from interp.viz.tokens import literal


def difference(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """The second minus the first, head by head.

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes, or grids of heads that differ.
    """
    axes = ("layer", "head")
    first = require(first, axes, "difference")
    second = require(second, axes, "difference")
    if first.shape != second.shape:
        raise ShapeError(
            "Heads are compared one by one; these grids of (layer, head) are "
            f"{first.shape} and {second.shape}. Compare two runs of one model, or look "
            "at the two distributions."
        )
    named = f"change of {title(first)}"
    return (second - first.values).assign_attrs(
        units=unit(first), long_name=named, source=first.attrs.get("source", "")
    )


def paired_scatter(
    first: xr.DataArray, second: xr.DataArray, names: tuple[str, str]
) -> go.Figure:
    """Each head's value in one run against the same head's in the other.

    On the dashed line nothing changed.

    Args:
        first: Over (layer, head).
        second: The same grid.
        names: What the runs are called.

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes, or grids of heads that differ.
    """
    difference(first, second)
    first = require(first, ("layer", "head"), "paired_scatter")
    second = require(second, ("layer", "head"), "paired_scatter")
    x, y = first.values.ravel(), second.values.ravel()
    known = np.isfinite(x) & np.isfinite(y)
    both = np.concatenate([x[known], y[known]])
    ends = [float(both.min()), float(both.max())] if both.size else [0.0, 1.0]
    depth = np.repeat(index(first, "layer"), first.sizes["head"])
    heads = np.tile(index(first, "head"), first.sizes["layer"])
    measure = literal(unit(first))
    figure = go.Figure(
        [
            go.Scatter(
                x=ends,
                y=ends,
                mode="lines",
                name="no change",
                line={"color": theme.NEUTRAL, "width": 1, "dash": "dash"},
                hoverinfo="skip",
            ),
            go.Scatter(
                x=x[known].astype(np.float32),
                y=y[known].astype(np.float32),
                mode="markers",
                name="a head, color by layer",
                customdata=np.stack([depth, heads], axis=-1)[known],
                marker={
                    "size": 7,
                    "opacity": 0.85,
                    "color": depth[known],
                    "coloraxis": "coloraxis",
                },
                hovertemplate="<b>L%{customdata[0]}.H%{customdata[1]}</b><br>"
                f"%{{x:,.3~r}}, then %{{y:,.3~r}} {measure}<extra></extra>",
            ),
        ]
    )
    figure.update_layout(
        template=theme.template(),
        title=title(first),
        height=380,
        coloraxis={
            "autocolorscale": True,
            "colorbar": {"title": {"text": "layer"}},
        },
        showlegend=False,
    )
    for axis, name in zip(("xaxis", "yaxis"), names, strict=True):
        figure.update_layout({axis: {"title": f"{literal(name)} ({measure})"}})
    return figure


def paired_distribution(
    first: xr.DataArray, second: xr.DataArray, names: tuple[str, str]
) -> go.Figure:
    """All heads of two runs over relative depth, whatever their grids.

    Args:
        first: Over (layer, head).
        second: Likewise, of another model if need be.
        names: What the runs are called.

    Raises:
        InputError: Not labelled arrays.
        ShapeError: Other axes.
    """
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.03)
    for column, (array, name) in enumerate(zip((first, second), names, strict=True), 1):
        array = require(array, ("layer", "head"), "paired_distribution")
        layers, heads = index(array, "layer"), index(array, "head")
        spread = (np.arange(len(heads)) - (len(heads) - 1) / 2) / len(heads) * 0.6
        figure.add_scatter(
            x=(layers[:, None] + spread).ravel(),
            y=array.values.ravel().astype(np.float32),
            text=[f"L{a}.H{b}" for a in layers for b in heads],
            customdata=[[int(a), int(b)] for a in layers for b in heads],
            mode="markers",
            marker={
                "size": 6,
                "opacity": 0.8,
                "color": theme.MARKS[column - 1],
                "symbol": ("circle", "diamond")[column - 1],
            },
            hovertemplate="<b>%{text}</b>: %{y:,.3~r} "
            f"{literal(unit(array))}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(
            title=f"layer of {literal(name)}",
            row=1,
            col=column,
            **whole_ticks(len(layers)),
        )
    figure.update_yaxes(
        title=f"{literal(title(first))} ({literal(unit(first))})", col=1
    )
    figure.update_layout(template=theme.template(), showlegend=False, height=320)
    return figure


def largest_changes(change: xr.DataArray, count: int = 10) -> list[dict[str, str]]:
    """Heads that changed most, as rows of a table."""
    values = require(change, ("layer", "head"), "largest_changes").values
    ranked = np.argsort(-np.abs(np.nan_to_num(values)), axis=None, kind="stable")
    rows = []
    for flat in ranked[:count]:
        row, column = np.unravel_index(flat, values.shape)
        layer, head = index(change, "layer")[row], index(change, "head")[column]
        rows.append(
            {"head": f"L{layer}.H{head}", "change": number(float(values[row, column]))}
        )
    return rows
