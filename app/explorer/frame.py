"""The frame around every page: the selection on the left, one page, what is held."""

import streamlit as st

from interp.app.explorer import selection
from interp.app.explorer.charts import mode
from interp.app.explorer.memory import GIB
from interp.app.explorer.page import Page, note, section
from interp.app.explorer.server import server
from interp.app.explorer.style import style
from interp.viz import theme


def show(page: Page) -> None:
    """A page in its frame."""
    st.html(f"<style>{style(theme.PALETTES[mode()])}</style>")
    st.html(f"<h1>{page.title}</h1><p class='interp-question'>{page.question}</p>")
    opened = None
    with st.sidebar:
        if not page.alone:
            with section():
                opened = selection.ask()
        selection.head_box()
        selection.add_text()
        selection.add_store()
        _memory()
    with section():
        if page.alone:
            page.render()
        elif opened is None:
            note("Nothing is open. Choose another source on the left.")
        elif (reading := opened()) is not None:
            page.render(reading)


def _memory() -> None:
    """What is held, and what was given up."""
    models, results = server().library.shelf, server().results
    said = [
        f"Models {models.used / GIB:.1f} of {models.limit / GIB:.1f} GiB, results "
        f"{results.used / GIB:.1f} of {results.limit / GIB:.1f} GiB."
    ]
    said += [f"{each}." for each in server().evictions[-3:]]
    note(" ".join(said))
