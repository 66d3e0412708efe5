"""A chart of a page: figure, how to read it, where it comes from, and downloads."""

import re
import shutil
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from markupsafe import Markup, escape

from interp.viz import theme
from interp.viz.pictures import Form, picture

Chosen = Callable[[dict[str, Any]], None]
"""Told what was clicked or lassoed: `points`, each with `x`, `y` and `customdata`."""

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_drawing = threading.Lock()

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""That draw PNG and SVG on the server."""

IMAGES: dict[Form, str] = {"png": "image/png", "svg": "image/svg+xml"}

MISSING = (
    "Drawn by Chromium, which is not installed on the machine that runs the explorer. "
    "The camera above the chart saves SVG without it."
)


def chart(
    figure: go.Figure,
    key: str,
    *,
    read: str,
    source: str,
    table: pd.DataFrame,
    python: str,
    chosen: Chosen | None = None,
    modes: tuple[str, ...] = ("points",),
    title: bool = True,
) -> None:
    """Show a figure with all that belongs to it.

    Args:
        figure: From `interp.viz`; its template follows the reader's theme.
        key: Unique on the page, of letters, digits and "-"; names the downloads.
        read: One sentence on how to read it, as plain text.
        source: The method's source, as plain text; papers of arXiv become links.
        table: The numbers that are shown, for the CSV.
        python: Lines that make the figure.
        chosen: Called when marks are clicked or selected, before the page runs again.
        modes: Of selection: "points", "box", "lasso".
        title: Keep the figure's own title.
    """
    figure = themed(figure)
    if not title:
        figure.update_layout(title=None, margin_t=16)
    options: dict[str, Any] = {}
    if chosen is not None:
        options = {"on_select": partial(_choose, key, chosen), "selection_mode": modes}
        figure.update_layout(clickmode="event+select")
    st.plotly_chart(
        figure,
        key=key,
        theme=None,
        alt=read,
        config={
            "displaylogo": False,
            "toImageButtonOptions": {"format": "svg", "filename": key},
        },
        **options,
    )
    explain(read, source)
    downloads(key, table, python, figure=figure)


def explain(read: str, source: str) -> None:
    """How to read what stands above, and where it comes from."""
    st.html(
        f'<p class="interp-read">{escape(read)} '
        f'<span class="interp-source">{linked(source)}</span></p>'
    )


def downloads(
    key: str,
    table: pd.DataFrame,
    python: str,
    *,
    figure: go.Figure | None = None,
    page: str | None = None,
) -> None:
    """Files of what stands above.

    Args:
        key: Name of the files.
        table: For the CSV.
        python: Lines that make it.
        figure: For PNG and SVG.
        page: An HTML page of it, where it is no figure.
    """
    with st.container(horizontal=True, gap="small"):
        if figure is not None:
            for form, mime in IMAGES.items():
                drawn = partial(image, figure, form, theme.PALETTES[mode()].card)
                _button(form, key, drawn, mime, "" if can_draw() else MISSING)
        if page is not None:
            _button("html", key, partial(str, page), "text/html")
        _button("csv", key, partial(table.to_csv, index=False), "text/csv")
        _button("py", key, partial(str, f"{python}\n"), "text/x-python")


def image(figure: go.Figure, form: Form, paper: str) -> bytes:
    """A figure as a file, drawn by Chromium on paper of that color."""
    drawn = go.Figure(figure).update_layout(paper_bgcolor=paper)
    with _drawing:
        return picture(drawn.to_dict(), form, width=1000, scale=2)


@cache
def can_draw() -> bool:
    """Whether there is a browser that draws."""
    return any(map(shutil.which, BROWSERS))


def themed(figure: go.Figure) -> go.Figure:
    """A copy in the colors of the reader's theme."""
    return go.Figure(figure).update_layout(template=theme.template(mode()))


def mode() -> theme.Mode:
    """The reader's theme."""
    return "dark" if st.context.theme.type == "dark" else "light"


def linked(source: str) -> Markup:
    """A source as HTML, papers of arXiv as links."""
    return Markup(
        _ARXIV.sub(
            r'<a href="https://arxiv.org/abs/\1" target="_blank" '
            r'rel="noopener noreferrer">arXiv:\1</a>',
            str(escape(source)),
        )
    )


def _button(
    form: str, key: str, data: Callable[[], Any], mime: str, missing: str = ""
) -> None:
    """A file that is made when it is asked for: one made before may be gone by then."""
    names = {"png": "PNG", "svg": "SVG", "csv": "CSV", "py": "Python", "html": "HTML"}
    st.download_button(
        names[form],
        data,
        file_name=f"{key}.{form}",
        mime=mime,
        key=f"{key} {form}",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
        disabled=bool(missing),
        help=missing or None,
    )


def _choose(key: str, chosen: Chosen) -> None:
    selection = st.session_state[key].selection
    if selection.points or selection.box or selection.lasso:
        chosen(selection)
