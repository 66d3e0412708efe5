"""Marks over cells, so that a click or a lasso can choose them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.viz import theme
from interp.viz.arrays import index, require

HERE = "chosen here"
"""Name of the marks that frame what is chosen."""


def selectable(figure: go.Figure, array: xr.DataArray) -> go.Figure:
    """A map of heads whose cells can be chosen: heatmaps alone answer no clicks.

    Args:
        figure: As `head_map` draws it.
        array: What it shows, over (layer, head).

    Returns:
        The same figure, with an unseen mark on every cell, which says what the cell
        said; its `x` is the layer, its `y` the head.

    Raises:
        InputError: Not a labelled array.
        ShapeError: Other axes.
    """
    array = require(array, ("layer", "head"), "selectable")
    layers, heads = index(array, "layer"), index(array, "head")
    unseen: dict[str, Any] = {"opacity": 0}
    cells: Any = figure.data[0]
    values = array.values.astype(np.float32).ravel()
    told = cells.hovertemplate.replace("%{z", "%{marker.color")
    silent = "<b>L%{x}.H%{y}</b><br>no value<extra></extra>"
    figure.add_scatter(
        x=[int(layer) for layer in layers for _ in heads],
        y=[int(head) for _ in layers for head in heads],
        mode="markers",
        # Of marks that overlap, plotly takes the last: they must be smaller than cells.
        marker={"size": 1, "opacity": 0, "color": values},
        selected={"marker": unseen},
        unselected={"marker": unseen},
        text=_by_layer(cells.text),
        customdata=_by_layer(cells.customdata),
        hovertemplate=[told if known else silent for known in np.isfinite(values)],
        showlegend=False,
        name="",
    )
    # The nearest mark, however far, so that all of a cell can be clicked.
    return figure.update_layout(hoverdistance=-1)


def _by_layer(told: Sequence | np.ndarray | None) -> list | None:
    """What cells say, `[head, layer]`, in the order of the marks."""
    return None if told is None else np.array(told).T.ravel().tolist()


def framed(figure: go.Figure, heads: Iterable[tuple[int, int]]) -> go.Figure:
    """The same figure with frames around some heads.

    Args:
        figure: As `head_map` draws it.
        heads: Layer and head of each.
    """
    places = list(heads)
    solid = {"opacity": 1}
    return figure.add_scatter(
        x=[layer for layer, _ in places],
        y=[head for _, head in places],
        mode="markers",
        marker={
            "symbol": "square-open",
            "size": 11,
            "color": theme.MARKS[1],
            "line": {"width": 2.5, "color": theme.MARKS[1]},
        },
        selected={"marker": solid},
        unselected={"marker": solid},
        hoverinfo="skip",
        showlegend=False,
        name=HERE,
    )
