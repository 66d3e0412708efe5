"""One head: what is known of it, its profiles, examples, and what it is needed for."""

from typing import cast

import pandas as pd
import streamlit as st

from interp.app.explorer import selection
from interp.app.explorer.ablations import Asked
from interp.app.explorer.charts import chart, downloads, explain
from interp.app.explorer.page import Page, note, section
from interp.app.explorer.readings import TOKENS, Reading
from interp.app.pages.ablate import effect
from interp.app.pages.long_map import SINKS, map_of, window_chart
from interp.app.pages.overview import detector_map
from interp.errors import NotCapturedError
from interp.heads import HeadId
from interp.probes.detector import HEADS, RowDetector, site_of
from interp.probes.registry import DETECTORS, resolve
from interp.viz.head_card import head_card
from interp.viz.profiles import COLUMNS, ROWS, profiles
from interp.viz.signals import examples, words

FIRST = ("detector", "value", "place", "interval", "what")
"""Columns of the table, what matters most first."""


def render(reading: Reading) -> None:
    """Everything about the chosen head."""
    head = selection.head(reading)
    names = reading.detectors
    left, right = st.columns([1, 1], gap="medium")
    with left, section(f"Head {head}"):
        by = selection.choose("Detector", names, "by", "induction")
        detector_map(reading, by, head)
    with right, section("In numbers"):
        table = pd.DataFrame(head_card(reading.atlas, head.layer, head.head))
        st.dataframe(table, hide_index=True, height=330, column_order=FIRST)
        explain(
            "Each detector's value for this head, and its place among all heads, the "
            "largest first.",
            "Sources stand under the maps of the Overview.",
        )
        downloads("head", table, f"{reading.python}\n\n{_card(head)}")
    with section("Its map"):
        found = map_of(reading, head)
        if found is not None:
            whole = (0, found.shape[0], 0, found.shape[1])
            window_chart(reading, found.window(), whole, "head-map", sinks=SINKS)
    with section("Along the text"):
        _profiles(reading, head)
    with section("Where it is strongest"):
        _examples(reading, head, by)
    with section("What is lost without it"):
        asked = Asked(str(head), n_tokens=reading.max_tokens or TOKENS)
        effect(reading, asked, "head-ablation")


def _profiles(reading: Reading, head: HeadId) -> None:
    node = site_of(reading.require_trace())
    site = node.to_dataset().sel(layer=head.layer, head=head.head)
    for names, side, read in (
        (ROWS, "query", "What the head's rows look like: one value for each query."),
        (COLUMNS, "key", "What its columns look like: what each key gets."),
    ):
        arrays = {name: site[name] for name in names if name in site}
        if not arrays:
            note(f"The trace holds none of {', '.join(names)}.")
            continue
        tokens = words(site, side)
        numbers = {name: each.values for name, each in arrays.items()}
        lines = (
            "from interp.viz.profiles import profiles\n"
            "from interp.viz.signals import words\n\n"
            f'site = trace["{node.name}"].to_dataset().sel('
            f"layer={head.layer}, head={head.head})\n"
            f"arrays = {{name: site[name] for name in {tuple(arrays)}}}\n"
            f'profiles(arrays, words(site, "{side}")).show()'
        )
        sources = dict.fromkeys(str(a.attrs.get("source", "")) for a in arrays.values())
        chart(
            profiles(arrays, tokens),
            f"profile-{side}",
            read=f"{read} Hover for the token.",
            source="; ".join(filter(None, sources)) or "Statistics of the map.",
            table=pd.DataFrame({"token": tokens, **numbers}),
            python=f"{reading.python}\n\n{lines}",
        )


def _examples(reading: Reading, head: HeadId, by: str) -> None:
    """Queries where the head does most of what the detector measures."""
    trace = reading.require_trace()
    found = resolve(by)[0] if by in DETECTORS else None
    rows = None
    if isinstance(found, RowDetector) and set(found.dims) == {*HEADS}:
        try:
            rows = found.rows(trace)
        except NotCapturedError:
            rows = None
    site = reading.require_site("max_key", "max_mass")
    said = f"Queries with the largest {by} of {head}"
    if rows is None:
        rows, said = site["max_mass"], f"Queries at which {head} is surest"
    table = pd.DataFrame(
        examples(site, rows.transpose(..., "query"), head.layer, head.head)
    )
    if table.empty:
        note(f"{head} has no value of {by} at any query of this text.")
        return
    st.dataframe(table, hide_index=True)
    explain(
        f"{said}, and the key that each looks at most.",
        str(reading.heads[by].attrs.get("source", "")),
    )
    downloads("examples", cast(pd.DataFrame, table), reading.python)


def _card(head: HeadId) -> str:
    return (
        "import pandas as pd\n"
        "from interp.viz.head_card import head_card\n\n"
        f"pd.DataFrame(head_card(tree, {head.layer}, {head.head}))"
    )


PAGE = Page(
    title="Head",
    path="head",
    question="What does one head look at in this text, and what is it needed for?",
    render=render,
)
