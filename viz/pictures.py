"""Figures of a notebook as pictures, which show where no script runs."""

import logging
import warnings
from typing import Any

import plotly.io as pio
from plotly.io.base_renderers import PngRenderer

from interp.errors import InputError
from interp.viz import theme

WIDTH, SCALE = 760, 1.5
"""Pixels of a figure's width, and picture pixels for each."""

LINE = 24
"""Pixels of a title above a legend: a picture has no room beside it."""


class Picture(PngRenderer):
    """A figure as PNG on paper of its own: code hosts have dark pages too."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        """The picture, by its media type."""
        layout = {**fig_dict["layout"], "paper_bgcolor": theme.LIGHT.card}
        is_map = all(trace["type"] == "heatmap" for trace in fig_dict["data"])
        if not is_map and "text" in layout.get("title", {}):
            layout = _with_room(layout)
        with warnings.catch_warnings():
            # plotly warns of options, which it always passes, where a server draws.
            warnings.filterwarnings("ignore", "The kopts argument", UserWarning)
            return super().to_mimebundle({**fig_dict, "layout": layout})


def _with_room(layout: dict[str, Any]) -> dict[str, Any]:
    """The title at the top edge, and a line between it and the legend."""
    title = {"yref": "container", "y": 1, "yanchor": "top", "pad": {"t": 10}}
    margin = layout.get("margin", {})
    room = {
        "title": {**layout.get("title", {}), **title},
        "margin": {**margin, "t": margin.get("t", LINE * 2) + LINE},
    }
    if "height" in layout:
        room["height"] = layout["height"] + LINE
    return {**layout, **room}


def as_pictures(width: int = WIDTH, scale: float = SCALE) -> None:
    """Show plotly's figures as PNG from now on; one browser draws them all.

    Args:
        width: Of a figure, in pixels; heights are the figures' own.
        scale: Picture pixels for each pixel of a figure.

    Raises:
        InputError: kaleido is not installed.
    """
    try:
        import kaleido
    except ImportError as error:
        raise InputError(
            "Figures as pictures were asked for, which kaleido draws with a browser. "
            "Install it: pip install 'interp[app]'."
        ) from error
    logging.getLogger("kaleido").setLevel(logging.ERROR)
    kaleido.start_sync_server(silence_warnings=True)
    pio.renderers["picture"] = Picture(width=width, scale=scale)
    pio.renderers.default = "picture"
