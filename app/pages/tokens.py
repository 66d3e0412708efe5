"""The text itself: colored by a signal, and who looks at one of its tokens."""

import pandas as pd
import streamlit as st
import xarray as xr

from interp.app.explorer import selection
from interp.app.explorer.charts import chart, downloads, explain
from interp.app.explorer.colored_text import colored_text
from interp.app.explorer.page import Page, note, section
from interp.app.explorer.readings import Reading
from interp.app.explorer.waiting import result
from interp.app.pages.overview import pick_head
from interp.heads import HeadId
from interp.probes.detector import site_of
from interp.probes.rhythm import Rhythm
from interp.viz import atlas as layout
from interp.viz.arrays import title, unit
from interp.viz.maps import head_map
from interp.viz.selectable import framed, selectable
from interp.viz.signals import (
    FLAGS,
    every_signal,
    flagged,
    lookers,
    of_layer,
    strongest_tokens,
)
from interp.viz.tables import massive_cells, sink_tokens
from interp.viz.tokens import token_strip, visible

LARGEST = "largest over layers"


def render(reading: Reading) -> None:
    """The colored text, the chosen token, and the striking tokens."""
    signals, words = every_signal(reading.tokens), layout.strings(reading.tokens)
    names = [*signals, *(FLAGS if reading.trace is not None else ())]
    left, middle, right = st.columns([3, 2, 2])
    with left:
        name = selection.choose("Color by", names, "signal", "received")
    with middle:
        if name in FLAGS:
            first = st.number_input(
                "Response from token",
                1,
                max(len(words) - 2, 1),
                1,
                key="response",
                bind="query-params",
                help="The rhythm is that of the tokens from here on.",
            )
            values = _flagged(reading, name, len(words), int(first))
            if values is None:
                return
        else:
            values = signals[name]
            layers = [LARGEST]
            if "layer" in values.dims:
                layers += [str(layer) for layer in values["layer"].values]
            layer = selection.choose("Layer", layers, "layer")
            values = of_layer(values, None if layer == LARGEST else int(layer))
    with right:
        last = len(words) - 1
        here = int(
            st.number_input("Token", 0, last, step=1, key="token", bind="query-params")
        )
    with section():
        _text(reading, name, values, words, here)
    with section(f"Who looks at token {here}, {visible(words[here])}"):
        _looked_at(reading, here)
    with section("Striking tokens"):
        _striking(reading, values, words)


def _text(
    reading: Reading, name: str, shown: xr.DataArray, words: list[str], here: int
) -> None:
    colored_text(shown, words, here, _choose, key="colored-text")
    about = str(shown.attrs.get("description", ""))
    read = (
        f"The darker (in dark mode, the lighter) a token, the more {title(shown)} "
        f"({unit(shown)}); hover for numbers, click to choose. {about}"
    )
    explain(read, str(shown.attrs.get("source", "")))
    table = pd.DataFrame(
        {"position": range(len(words)), "token": words, name: shown.values}
    )
    lines = (
        "from IPython.display import HTML\n"
        "from interp.viz.atlas import strings\n"
        "from interp.viz.signals import every_signal, of_layer\n"
        "from interp.viz.tokens import token_strip\n\n"
        f"values = of_layer(every_signal(tokens)[{name!r}], None)\n"
        "HTML(token_strip(values, strings(tokens)))"
    )
    page = f"<!doctype html><meta charset=utf-8>{token_strip(shown, words, limit=8192)}"
    downloads("text", table, f"{reading.python}\n\n{lines}", page=page)


def _looked_at(reading: Reading, here: int) -> None:
    """Attention that one token receives, head by head, and from which queries."""
    site = reading.require_site("received")
    received = site["received"].isel(key=here, drop=True)
    received = received.assign_attrs(site["received"].attrs)
    named = received.assign_attrs(long_name=f"received by token {here}")
    head = selection.head(reading)
    left, right = st.columns(2, gap="medium")
    with left:
        figure = head_map(named.transpose("layer", "head"))
        figure = framed(selectable(figure, named), [(head.layer, head.head)])
        chart(
            figure,
            "received-by-token",
            read="Mean attention that this token gets from the queries that can see "
            "it, a cell for each head; click one to list its queries.",
            source=str(received.attrs.get("source", "")) or "A mean over queries.",
            table=named.to_dataframe(name="received").reset_index(),
            python=f"{reading.python}\n\nfrom interp.viz.maps import head_map\n\n"
            f'head_map(trace["{site_of(reading.require_trace()).name}"]["received"]'
            f".isel(key={here}, drop=True)).show()",
            chosen=pick_head,
        )
    with right, section():
        _lookers(reading, head, here)


def _lookers(reading: Reading, head: HeadId, here: int) -> None:
    site = reading.require_site("max_key", "max_mass")
    rows = lookers(site, head.layer, head.head, here)
    if not rows:
        note(f"No query of {head} looks at this token more than at all others.")
        return
    table = pd.DataFrame(rows)
    st.dataframe(table, hide_index=True, height=300)
    explain(
        f"Queries of {head} that look at this token more than at any other, the "
        "strongest first.",
        "The largest weight of each row of the map.",
    )
    downloads("lookers", table, reading.python)


def _striking(reading: Reading, shown: xr.DataArray, words: list[str]) -> None:
    tables = {
        f"most {title(shown)}": strongest_tokens(shown, words),
        "sinks": [vars(row) for row in sink_tokens(reading.tokens)],
        "massive activations": [vars(row) for row in massive_cells(reading.tokens)],
    }
    for name, rows in tables.items():
        with st.expander(name, expanded=name.startswith("most")):
            if not rows:
                note("There are none in this text.")
                continue
            table = pd.DataFrame(rows)
            st.dataframe(table, hide_index=True)
            downloads(f"tokens-{name.split()[0]}", table, reading.python)


def _flagged(
    reading: Reading, name: str, count: int, first: int
) -> xr.DataArray | None:
    """Preplan or anchor tokens of what follows a prompt; None while they are found."""
    trace = reading.require_trace().copy()
    trace.attrs = {**trace.attrs, "prompt_tokens": first}
    found = result(
        f"rhythm {reading.key} {first}",
        "rhythm of the text",
        lambda tell: Rhythm().read(trace),
    )
    return None if found is None else flagged(found, name, count)


def _choose(token: int) -> None:
    st.session_state["token"] = token


PAGE = Page(
    title="Tokens",
    path="tokens",
    question="Which tokens draw attention, plan and anchor, and who looks at them?",
    render=render,
)
