"""Marks over cells, so that a click or a lasso can choose them."""

from collections.abc import Iterable

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
        The same figure, with an unseen mark on every cell; its `x` is the layer, its
        `y` the head.

    Raises:
        InputError: Not a labelled array.
        ShapeError: Other axes.
    """
    array = require(array, ("layer", "head"), "selectable")
    layers, heads = index(array, "layer"), index(array, "head")
    unseen = {"opacity": 0}
    return figure.add_scatter(
        x=[int(layer) for layer in layers for _ in heads],
        y=[int(head) for _ in layers for head in heads],
        mode="markers",
        marker={"symbol": "square", "size": 12, "opacity": 0},
        selected={"marker": unseen},
        unselected={"marker": unseen},
        hoverinfo="none",
        showlegend=False,
        name="",
    )


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
