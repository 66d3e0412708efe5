"""One head along the text: what its rows look like, and its columns."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.errors import InputError
from interp.viz import theme
from interp.viz.arrays import require, title, unit
from interp.viz.tokens import literal, visible

ROWS = ("entropy", "distance", "first_mass", "max_mass")
"""Statistics over queries that make the row profile."""
COLUMNS = ("received", "received_max", "fai")
"""Statistics over keys that make the column profile."""

PANEL, GAP = 112, 30
"""Height of a panel with the gap above it, and of that gap, in pixels."""


def profiles(
    arrays: Mapping[str, xr.DataArray],
    tokens: Sequence[str],
    here: int | None = None,
) -> go.Figure:
    """Statistics of one head along the text, a panel each, on one axis of tokens.

    Args:
        arrays: By name, each over one of `query`, `key` and `token`.
        tokens: The tokens' strings.
        here: A token that is marked.

    Raises:
        InputError: No array, or another number of tokens than of strings.
        ShapeError: Other axes.
    """
    if not arrays:
        raise InputError("profiles draws one array or more; got none. Pass some.")
    gap = GAP / (PANEL * len(arrays))
    figure = make_subplots(rows=len(arrays), shared_xaxes=True, vertical_spacing=gap)
    places = np.arange(len(tokens))
    names = [f"{i}: {literal(visible(token))}" for i, token in enumerate(tokens)]
    for row, array in enumerate(arrays.values(), 1):
        own = str(array.dims[0]) if array.ndim else "query"
        array = require(array, (own,), "profiles")
        if array.size != len(tokens):
            raise InputError(
                f"profiles needs a string for each of {array.size} tokens; got "
                f"{len(tokens)}. Pass the token coordinate of the same text."
            )
        measure = literal(unit(array))
        figure.add_scatter(
            x=places,
            y=array.values.astype(np.float32),
            text=names,
            mode="lines+markers",
            line={"width": 1.2, "color": theme.MARKS[(own == "key") * 2]},
            marker={"size": 3},
            showlegend=False,
            hovertemplate=f"%{{text}}<br>{literal(title(array))}: "
            f"%{{y:,.3~r}} {measure}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(rangemode="tozero", nticks=4, row=row, col=1)
        figure.add_annotation(
            text=f"{literal(title(array))}{f' ({measure})' if measure else ''}",
            x=0,
            y=1,
            xref="x domain" if row == 1 else f"x{row} domain",
            yref="y domain" if row == 1 else f"y{row} domain",
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
        )
    if here is not None:
        figure.add_vline(
            x=here, line={"width": 1.5, "color": theme.MARKS[1], "dash": "dot"}
        )
    figure.update_layout(
        template=theme.template(),
        height=PANEL * len(arrays) + 84,
        margin={"l": 56, "r": 12, "t": 28, "b": 44},
    )
    figure.update_xaxes(title="token", row=len(arrays), col=1)
    figure.update_xaxes(range=[-0.5, len(tokens) - 0.5])
    return figure
