"""Figures as pictures, for where no script runs: notebooks on a code host, files."""

import asyncio
import base64
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal

import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

from interp.errors import InputError
from interp.viz import theme

Form = Literal["png", "svg"]

WIDTH, SCALE = 760, 1.5
"""Pixels of a figure's width, and picture pixels for each."""

HEIGHT = 500
"""Pixels of a figure that has no height of its own."""

LINE = 24
"""Pixels of a title above a legend: a picture has no room beside it."""

PATIENCE, ATTEMPTS = 30.0, 3
"""Seconds that a browser may take, and how many browsers: one may never answer."""

CLOSING = 5.0
"""Seconds to close one that does not answer, before it is killed."""


def picture(figure: dict[str, Any], form: Form, width: int, scale: float) -> bytes:
    """A figure as a file, drawn by a browser of its own, without the network.

    Args:
        figure: As `Figure.to_dict` gives it.
        form: Of the file.
        width: Of the figure, in pixels; its height is its own.
        scale: Picture pixels for each pixel of the figure.

    Raises:
        InputError: kaleido or its browser is missing, or no browser answers.
    """
    try:
        import kaleido
        from choreographer import errors
    except ImportError as error:
        raise InputError(
            "Figures as pictures were asked for, which kaleido draws with a browser. "
            "Install it: pip install 'interp[app]'."
        ) from error
    logging.getLogger("kaleido").setLevel(logging.ERROR)
    height = figure.get("layout", {}).get("height") or HEIGHT
    options = {"format": form, "width": width, "height": height, "scale": scale}

    async def asked(browser: kaleido.Kaleido) -> bytes:
        await browser.open()
        return await browser.calc_fig(figure, opts=options)  # type: ignore[arg-type]

    async def drawn() -> bytes:
        # MathJax would come from the network, which the browser would wait for.
        browser = kaleido.Kaleido(n=1, mathjax=False)
        task = asyncio.create_task(asked(browser))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # The task may not heed a cancellation; it ends with the browser.
            await asyncio.wait({task}, timeout=PATIENCE)
            if not task.done() or task.cancelled():
                raise TimeoutError
            return task.result()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await browser.close()

    failed: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            # In a thread, since a notebook has an event loop of its own.
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(asyncio.run, drawn()).result()
        except (
            TimeoutError,
            errors.BrowserClosedError,
            errors.BrowserFailedError,
            errors.ChannelClosedError,
        ) as error:
            failed = error
        except errors.ChromeNotFoundError as error:
            raise InputError(
                "Figures as pictures were asked for; there is no Chrome or Chromium. "
                "Install one, such as with kaleido_get_chrome."
            ) from error
    raise InputError(
        f"A picture was to be drawn; {ATTEMPTS} browsers failed, or did not answer "
        f"within {PATIENCE:g} s. Make memory free, or look at the figure without one."
    ) from failed


class Picture(MimetypeRenderer):
    """A figure as PNG on paper of its own: code hosts have dark pages too."""

    def __init__(self, width: int, scale: float) -> None:
        self.width, self.scale = width, scale

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        """The picture, by its media type."""
        layout = {**fig_dict["layout"], "paper_bgcolor": theme.LIGHT.card}
        is_map = all(trace["type"] == "heatmap" for trace in fig_dict["data"])
        if not is_map and "text" in layout.get("title", {}):
            layout = _with_room(layout)
        figure = {**fig_dict, "layout": layout}
        drawn = picture(figure, "png", self.width, self.scale)
        return {"image/png": base64.b64encode(drawn).decode()}


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
    """Show plotly's figures as PNG from now on.

    Args:
        width: Of a figure, in pixels; heights are the figures' own.
        scale: Picture pixels for each pixel of a figure.
    """
    pio.renderers["picture"] = Picture(width=width, scale=scale)
    pio.renderers.default = "picture"
