"""Every detector on every head, as linked maps."""

import pandas as pd
import streamlit as st
from markupsafe import Markup

from interp.app.explorer import selection
from interp.app.explorer.charts import chart, downloads, explain
from interp.app.explorer.page import Page, note, section
from interp.app.explorer.readings import Reading, skipped
from interp.heads import HeadId
from interp.viz import atlas as layout
from interp.viz.arrays import labels, title, unit
from interp.viz.findings import findings
from interp.viz.maps import head_map
from interp.viz.selectable import framed, selectable
from interp.viz.tables import strongest

FIRST = ("sinks", "previous_token", "induction", "local", "entropy", "distance")
"""Detectors that are shown unasked."""

COLUMNS = 2

READ = (
    "A cell is a head, layers from left to right; click one to look at it everywhere."
)


def render(reading: Reading) -> None:
    """Maps of the chosen detectors, and the strongest heads of one."""
    names = reading.detectors
    here = selection.head(reading)
    first = [name for name in FIRST if name in names] or names[:6]
    st.html(_facts(reading, here))
    with section():
        note(
            "\n".join(f"{f.headline}: {f.sentence}" for f in findings(reading.atlas, 3))
        )
    shown = st.pills(
        "Detectors",
        names,
        default=first,
        selection_mode="multi",
        key="detectors",
        bind="query-params",
    )
    columns = st.columns(COLUMNS, gap="medium")
    for place, name in enumerate(shown):
        with columns[place % COLUMNS], section():
            detector_map(reading, name, here)
    with section("The strongest heads"):
        _strongest(reading, [n for n in names if not labels(reading.heads[n])])
    missing = skipped(reading)
    if missing:
        with st.expander(f"Not measured here ({len(missing)})"):
            note("\n".join(f"{what}: {why}" for what, why in missing))


def detector_map(reading: Reading, name: str, here: HeadId) -> None:
    """One detector's map, where a click chooses the head of all pages."""
    array = reading.heads[name].transpose("layer", "head")
    figure = head_map(array, layout.bounds(reading.atlas, name))
    figure = framed(selectable(figure, array), [(here.layer, here.head)])
    chart(
        figure,
        f"map-{name}",
        read=f"{array.attrs.get('description', '')} {READ}",
        source=str(array.attrs.get("source", "")),
        table=array.to_dataframe().reset_index(),
        python=f"{reading.python}\n\n{_lines(name)}",
        chosen=pick_head,
    )


def pick_head(selected: dict) -> None:
    """The head of a click becomes the head of all pages."""
    for point in selected["points"][:1]:
        selection.pick(int(point["x"]), int(point["y"]))


def _strongest(reading: Reading, names: list[str]) -> None:
    by = selection.choose("By", names, "by", names[0])
    array = reading.heads[by].transpose("layer", "head")
    rows = strongest(array, layout.bounds(reading.atlas, by), count=12)
    table = pd.DataFrame(
        {
            "head": [row.name for row in rows],
            title(array): [row.value for row in rows],
            "interval": [row.interval for row in rows],
            "KV group": [row.group for row in rows],
        }
    )
    st.dataframe(table, hide_index=True, height="content")
    read = f"The heads with the largest {title(array)}, in {unit(array)}."
    explain(read, str(array.attrs.get("source", "")))
    downloads("strongest-heads", table, f"{reading.python}\n\n{_top(by)}")


def _facts(reading: Reading, here: HeadId) -> Markup:
    attrs = reading.atlas.attrs
    return Markup(
        "<p class='interp-facts'><b>{}</b> {} tokens, {} layers of {} heads. Head "
        "<b>{}</b> is framed.</p>"
    ).format(
        reading.title,
        f"{reading.tokens.sizes.get('token', 0):,}",
        attrs.get("n_layers", reading.heads.sizes["layer"]),
        attrs.get("n_heads", reading.heads.sizes["head"]),
        here,
    )


def _lines(name: str) -> str:
    return f"from interp.viz.maps import head_map\n\nhead_map(heads[{name!r}]).show()"


def _top(name: str) -> str:
    return f"print(interp.HeadSet.top(heads[{name!r}], k=12))"


PAGE = Page(
    title="Overview",
    path="overview",
    question="Which heads are sinks, which copy, which look nearby or far?",
    render=render,
)
