"""Two runs side by side: models, texts, or with and without some heads."""

import pandas as pd
import streamlit as st
import xarray as xr

from interp.app.explorer import selection
from interp.app.explorer.charts import chart, downloads, explain
from interp.app.explorer.page import Page, note, section
from interp.app.explorer.readings import Reading
from interp.app.pages.overview import pick_head
from interp.errors import InputError
from interp.tasks.reading import ORCHARD
from interp.viz.arrays import labels, title
from interp.viz.differences import (
    difference,
    largest_changes,
    paired_distribution,
    paired_scatter,
)
from interp.viz.maps import head_map
from interp.viz.selectable import framed, selectable

WAYS = ("another text", "another model or store", "without some heads")


def render(reading: Reading) -> None:
    """The reading beside a second one."""
    way = selection.choose("Compare with", WAYS, "with", WAYS[0])
    other = _other(reading, way)
    if other is None:
        return
    names = [
        name
        for name in reading.detectors
        if name in other.heads and not labels(reading.heads[name])
    ]
    if not names:
        raise InputError("The two have no detector in common. Choose others.")
    # Induction is read from random tokens, which are the same for every text.
    usual = "sinks" if way == WAYS[0] else "induction"
    by = selection.choose("Detector", names, "by", usual)
    first, second = (
        each.heads[by].transpose("layer", "head") for each in (reading, other)
    )
    note(f"First: {reading.title}\nSecond: {other.title}")
    lines = _lines(reading, other, by)
    if first.shape == second.shape:
        _one_by_one(first, second, by, lines, selection.head(reading))
    else:
        with section("All heads"):
            chart(
                paired_distribution(first, second, ("first", "second")),
                "distributions",
                read="A mark is a head over its layer; the grids differ, so that heads "
                "have no partners.",
                source=str(first.attrs.get("source", "")),
                table=_both(first, second),
                python=f"{lines}paired_distribution(first, second, ('first', 'second'))"
                ".show()",
            )


def _one_by_one(
    first: xr.DataArray, second: xr.DataArray, by: str, lines: str, here: object
) -> None:
    """Maps of both, what changed, and each head against itself."""
    change, table = difference(first, second), _both(first, second)
    source = str(first.attrs.get("source", ""))
    place = [(here.layer, here.head)]  # type: ignore[attr-defined]
    maps = (("First", first), ("Second", second), ("Second minus first", change))
    for column, (name, array) in zip(st.columns(3, gap="small"), maps, strict=True):
        with column, section(name):
            figure = framed(selectable(head_map(array), array), place)
            chart(
                figure,
                f"compare-{name.split()[-1].lower()}-{len(name)}",
                read="A cell is a head; click one to look at it everywhere.",
                source=source,
                table=table,
                python=f"{lines}head_map({_NAMES[name]}).show()",
                chosen=pick_head,
                title=False,
            )
    left, right = st.columns([2, 1], gap="medium")
    with left, section("Head by head"):
        chart(
            paired_scatter(first, second, ("first", "second")),
            "paired",
            read="A mark is a head; on the dashed line nothing changed.",
            source=source,
            table=table,
            python=f"{lines}paired_scatter(first, second, ('first', 'second')).show()",
            title=False,
        )
    with right, section("Changed most"):
        rows = pd.DataFrame(largest_changes(change))
        st.dataframe(rows, hide_index=True, height=360)
        explain(f"Heads whose {title(first)} changed most.", source)
        downloads("changes", rows, f"{lines}print(largest_changes(change))")


def _other(reading: Reading, way: str) -> Reading | None:
    """What is compared with; None while it is being made."""
    tokens = reading.max_tokens or reading.tokens.sizes["token"]
    if way == WAYS[0]:
        text = selection.choose("Second text", selection.texts(), "text_b", ORCHARD)
        return selection.run_here(_model(reading), text, tokens)
    if way == WAYS[2]:
        if "without" not in st.session_state and not st.query_params.get("without"):
            st.session_state["without"] = str(selection.head(reading))
        heads = st.text_input(
            "Heads taken out",
            key="without",
            bind="query-params",
            help="Names with commas between; their output is set to zero.",
        )
        text = _text(reading)
        return selection.run_here(_model(reading), text, tokens, heads.strip(" ,"))
    stores = [name for name in selection.sources() if name != selection.LIVE]
    options = [*stores, *selection.models()]
    chosen = selection.choose("Second", options, "second")
    path = selection.sources().get(chosen)
    if path is not None:
        return selection.open_stored(path)
    return selection.run_here(chosen, _text(reading), tokens)


def _model(reading: Reading) -> str:
    if reading.model not in selection.models():
        raise InputError(
            f"The model of {reading.title} is not here. Start the explorer with "
            "--model, or compare with a store."
        )
    return str(reading.model)


def _text(reading: Reading) -> str:
    """The label of the text that is read."""
    if reading.text is None:
        raise InputError(
            f"{reading.title} does not hold its text, so that nothing else can read "
            "it. Choose a model as source."
        )
    return str(st.session_state["text"])


def _both(first: xr.DataArray, second: xr.DataArray) -> pd.DataFrame:
    columns = {
        name: each.drop_vars("kv_head", errors="ignore").to_series()
        for name, each in (("first", first), ("second", second))
    }
    return pd.DataFrame(columns).reset_index()


def _lines(reading: Reading, other: Reading, by: str) -> str:
    return (
        f"{reading.python}\nfirst = heads[{by!r}]\n\n{other.python}\n"
        f"second = heads[{by!r}]\n\nfrom interp.viz.differences import *\n"
        "from interp.viz.maps import head_map\n\n"
        "change = difference(first, second)\n"
    )


_NAMES = {"First": "first", "Second": "second", "Second minus first": "change"}

PAGE = Page(
    title="Compare",
    path="compare",
    question="What differs between two models, two texts, or without some heads?",
    render=render,
)
