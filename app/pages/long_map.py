"""Where a head looks, from the whole text down to one weight."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import streamlit as st
import xarray as xr

from interp.app.explorer import selection
from interp.app.explorer.charts import Chosen, chart
from interp.app.explorer.page import Page, note, section
from interp.app.explorer.readings import Reading
from interp.app.explorer.server import server
from interp.app.explorer.waiting import result
from interp.app.progress import Progress
from interp.calls import KeptCall, keep
from interp.errors import InputError
from interp.heads import HeadId, HeadSet
from interp.interventions import AblateHeads
from interp.map_windows import LongMap, long_map_of, of_call
from interp.probes.detector import site_of
from interp.viz.long_map import SCALES, cell_table, long_map, with_handles
from interp.viz.numbers import number
from interp.viz.tokens import visible

VALUES = {"largest weight": "block_max", "mean weight": "block_mean"}
SINKS = 4
"""First keys that colors leave out of account, unless told otherwise."""

Box = tuple[int, int, int, int]

_ZOOM = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*,\s*(\d+)\s*-\s*(\d+)\s*")


def render(reading: Reading) -> None:
    """The chosen head's map."""
    head = selection.head(reading)
    with section(f"Head {head}"):
        found = map_of(reading, head)
        if found is not None:
            _windows(reading, found)


def map_of(reading: Reading, head: HeadId) -> LongMap | None:
    """The head's map, its overview made; None while it is being made.

    Raises:
        NotCapturedError: A store without query and key.
    """
    site = "self" if reading.trace is None else str(site_of(reading.trace).name)
    if reading.model is not None and reading.text is not None:
        call = result(
            f"call {reading.key} {site} {head.layer}",
            f"queries and keys of layer {head.layer}",
            lambda tell: _keep(reading, head.layer, site, tell),
        )
        if call is None:
            return None
        make = partial(of_call, call, head.head)
    else:
        trace = reading.require_trace()
        where = {"layer": head.layer, "head": head.head, "site": site}
        make = partial(long_map_of, trace, **where)

    def work(tell: Progress) -> LongMap:
        made = make()
        made.prepare(lambda done, total: tell("overview", done, total))
        return made

    return result(f"map {reading.key} {site} {head}", f"the map of {head}", work)


def _keep(reading: Reading, layer: int, site: str, tell: Progress) -> KeptCall:
    assert reading.model is not None
    with server().library.use(reading.model, tell) as model, ExitStack() as stack:
        if reading.ablated:
            heads = HeadSet.parse(reading.ablated, model.anatomy)
            stack.enter_context(AblateHeads(heads)(model))
        tell("reading", 0, 0)
        tokens = reading.max_tokens
        return keep(model, reading.text, layer=layer, site=site, max_tokens=tokens)


def window_chart(
    reading: Reading,
    window: xr.Dataset,
    box: Box,
    key: str,
    *,
    chosen: Chosen | None = None,
    **options: Any,
) -> None:
    """A window of a map with all that belongs to it.

    Args:
        reading: What the map is of.
        window: Of its map.
        box: Where: first query, the query after the last, and the same of keys.
        key: Of the chart.
        chosen: Told of a box that is drawn; None lets none be drawn.
        options: Of `interp.viz.long_map.long_map`.
    """
    figure = long_map(window, **options)
    chart(
        figure if chosen is None else with_handles(figure, window),
        key,
        read="Each row is a query, each column a key, the color how much the one looks "
        f"at the other{'' if chosen is None else '; draw a box to zoom in'}.",
        source="Weights are rebuilt from query, key and the row's log-sum-exp, "
        "arXiv:2205.14135; cells are block maps of these.",
        table=cell_table(window),
        python=_python(reading, window.attrs, box, options),
        chosen=chosen,
        modes=("box",),
    )


@st.fragment
def _windows(reading: Reading, lm: LongMap) -> None:
    """The window that is zoomed to; a step draws this part alone."""
    with section():
        first, second, third, fourth = st.columns([2, 2, 1, 1])
        with first:
            values = selection.choose("Cells show the", list(VALUES), "cells")
        with second:
            scale = selection.choose("Colors", SCALES, "scale", "log")
        sinks = third.number_input(
            "Ignore first keys",
            min_value=0,
            max_value=64,
            value=SINKS,
            key="sinks",
            bind="query-params",
            help="Left out of the range of the colors, but drawn all the same.",
        )
        diagonal = fourth.number_input(
            "Ignore nearest keys",
            min_value=0,
            max_value=4096,
            value=0,
            key="diagonal",
            bind="query-params",
            help="Likewise, the keys nearest to each query.",
        )
        box, out, whole = st.columns([4, 1, 1], vertical_alignment="bottom")
        box.text_input(
            "Queries and keys",
            key="zoom",
            bind="query-params",
            placeholder=_said((0, lm.shape[0], 0, lm.shape[1])),
            help="First and last, as 100-140,0-64. A box drawn in the map fills it.",
        )
        whole.button("Whole map", on_click=_go, args=(None,))
        here = read_zoom(st.session_state.get("zoom") or "", lm.shape)
        out.button("Zoom out", on_click=_go, args=(wider(here, lm.shape),))
        window = lm.window(*here)
        told(window, here)
        window_chart(
            reading,
            window,
            here,
            "long-map",
            chosen=lambda chosen: _boxed(chosen, lm.shape),
            values=VALUES[values],
            scale=scale,
            sinks=int(sinks),
            diagonal=int(diagonal),
        )


def told(window: xr.Dataset, here: Box) -> None:
    """What is shown, and the weight itself where it is one cell."""
    size = int(window.attrs["size"])
    said = (
        f"Queries {here[0]:,} to {here[1] - 1:,}, keys {here[2]:,} to {here[3] - 1:,}"
    )
    if window["block_mean"].size > 1 or size > 1:
        cell = "every weight" if size == 1 else f"cells of {size} x {size} tokens"
        note(f"{said}; {cell}.")
        return
    words = [
        f"{name} {here[at]:,} {visible(str(window[f'{name}_token'].values[0]))}"
        if f"{name}_token" in window.coords
        else f"{name} {here[at]:,}"
        for name, at in (("query", 0), ("key", 2))
    ]
    weight = window["block_mean"].item()
    note(f"{words[0]} looks at {words[1]} with weight {number(weight, 7)}.")


def read_zoom(text: str, shape: tuple[int, int]) -> Box:
    """The window that the address names; all without a name.

    Raises:
        InputError: It names no window of the map.
    """
    if not text.strip():
        return 0, shape[0], 0, shape[1]
    match = _ZOOM.fullmatch(text)
    found = [int(each) for each in match.groups()] if match else []
    if not found or found[0] > found[1] or found[2] > found[3]:
        raise InputError(
            f"A window is written as first-last queries, first-last keys, such as "
            f"100-140,0-64; got {text[:60]!r}. Write it like that."
        )
    box = found[0], found[1] + 1, found[2], found[3] + 1
    if box[1] > shape[0] or box[3] > shape[1]:
        raise InputError(
            f"Queries and keys {text} were asked for; the map has queries 0 to "
            f"{shape[0] - 1} and keys 0 to {shape[1] - 1}. Choose within it."
        )
    return box


def wider(box: Box, shape: tuple[int, int]) -> Box:
    """A window twice as wide and high around the same place, within the map."""
    sides = []
    for low, high, count in ((*box[:2], shape[0]), (*box[2:], shape[1])):
        size = min(2 * (high - low), count)
        start = min(max((low + high - size) // 2, 0), count - size)
        sides += [start, start + size]
    return sides[0], sides[1], sides[2], sides[3]


def _said(box: Box) -> str:
    return f"{box[0]}-{box[1] - 1},{box[2]}-{box[3] - 1}"


def _go(box: Box | None) -> None:
    st.session_state["zoom"] = "" if box is None else _said(box)


def _boxed(chosen: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Zooms to a box that was drawn: the cells that it touches."""
    for drawn in chosen["box"][:1]:
        sides = []
        for axis, count in (("y", shape[0]), ("x", shape[1])):
            ends = sorted(round(float(end)) for end in drawn[axis])
            low, high = (min(max(end, 0), count - 1) for end in ends)
            sides += [low, high + 1]
        _go((sides[0], sides[1], sides[2], sides[3]))


def _python(
    reading: Reading, attrs: Mapping[str, Any], box: Box, options: dict[str, Any]
) -> str:
    where = f"layer={attrs['layer']}, head={attrs['head']}"
    site = attrs.get("site", "self")
    where += "" if site == "self" else f', site="{site}"'
    made = f"interp.long_map_of(trace, {where})"
    if reading.text is not None:
        made = f"interp.long_map(model, text, {where}, max_tokens={reading.max_tokens})"
    drawn = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return (
        f"{reading.python}\n\n"
        "from interp.viz.long_map import long_map\n\n"
        f"window = {made}.window{box}\n"
        f"long_map(window, {drawn}).show()"
    )


PAGE = Page(
    title="Long map",
    path="long_map",
    question="Where does a head look, from the whole text down to one weight?",
    render=render,
)
