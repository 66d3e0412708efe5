"""What breaks without some heads: effects with controls, and what the model says."""

from typing import Any, cast, get_args

import pandas as pd
import streamlit as st
import xarray as xr
from markupsafe import escape

from interp.app.explorer import ablations, selection
from interp.app.explorer.ablations import Ablation, Asked
from interp.app.explorer.charts import chart, downloads, explain
from interp.app.explorer.page import Page, note, section
from interp.app.explorer.readings import TOKENS, Reading
from interp.app.explorer.server import server
from interp.app.explorer.waiting import result
from interp.app.results import to_table
from interp.errors import InputError
from interp.heads import HeadId, HeadSet
from interp.interventions.ablation import Mode
from interp.viz import ablation as telling
from interp.viz import atlas as layout
from interp.viz.arrays import labels
from interp.viz.effects import effect_plot, has_grid, item_grid, item_scatter, measured
from interp.viz.maps import head_map
from interp.viz.selectable import framed, selectable
from interp.viz.tokens import visible

TASKS = ("nll", "repeated", "passkey", "nato", "needle", "key_value")
"""Tasks that need no file."""

FREE = ("zero", "uniform", "self")
"""Ways of ablation that need no other text; for what the model says."""

PROMPT = "The lighthouse keeper opened the ledger and read the first name aloud:"

WORDS = 32
"""Tokens that are generated."""


def render(reading: Reading) -> None:
    """Choose heads, measure what they are needed for, read what is said without."""
    left, right = st.columns([3, 2], gap="medium")
    names = [name for name in reading.detectors if not labels(reading.heads[name])]
    with left:
        by = selection.choose("Map", names, "by", "induction")
    array = reading.heads[by].transpose("layer", "head")
    if "heads" not in st.session_state and not st.query_params.get("heads"):
        st.session_state["heads"] = str(selection.head(reading))
    with right:
        _choosing(array, by)
    chosen = heads_in(reading, st.session_state["heads"])
    with left, section():
        _map(reading, array, by, chosen)
    with right:
        asked = _asked(reading, str(chosen))
    with section(f"Without {len(chosen)} head{'s' if len(chosen) > 1 else ''}"):
        effect(reading, asked, "ablation")
    with section("What the model says"):
        _said(reading, asked)


def heads_in(reading: Reading, named: str) -> HeadSet:
    """The heads that are named.

    Raises:
        InputError: None is, or one is not a head of the model.
    """
    if not named.strip(" ,"):
        raise InputError(
            "No head is chosen. Name some, take the strongest, or draw a lasso."
        )
    return HeadSet.parse(named.strip(" ,"), selection.default_map(reading))


def effect(reading: Reading, asked: Asked, key: str) -> None:
    """The effect of an ablation, once it is asked for.

    Args:
        reading: Whose model and text.
        asked: What is ablated and measured.
        key: Of the charts.
    """
    if reading.model is not None and reading.model not in selection.models():
        raise InputError(
            f"The model {reading.model} of this store is not here. Start the explorer "
            f"with --model {reading.model} to run experiments on it."
        )
    at, folder = server(), server().folder / "ablations"
    found = result(
        f"ablation {reading.key} {asked}",
        f"ablation of {asked.heads[:60]}",
        lambda tell: ablations.run(at.library, reading, asked, folder, tell),
        button="Run the ablation",
    )
    if found is not None:
        _show(found, key)


def _show(found: Ablation, key: str) -> None:
    numbers = to_table(found.tree)
    for number, (name, task) in enumerate(telling.tasks(found.tree)):
        effects = telling.own_effects(task)
        for finding in telling.findings(name, task):
            note(f"{finding.headline}\n{finding.sentence}")
        lines = (
            "import xarray as xr\nfrom interp.viz.ablation import own_effects\n"
            "from interp.viz.effects import effect_plot\n\n# made by: "
            f"{found.command}\ntree = xr.open_datatree("
            f'"effects.zarr", consolidated=False)\n'
            f'effect_plot(own_effects(tree["{name}"])).show()'
        )
        chart(
            effect_plot(effects),
            f"{key}-{number}",
            read="Diamond: the effect of these heads with its interval; circles: "
            "random heads of the same layers. Zero is the untouched model, in "
            f"{measured(effects)}.",
            source=str(effects.attrs.get("source", "")),
            table=numbers,
            python=lines,
            title=False,
        )
        figure = _items(task)
        if figure is not None:
            items = task["items"].to_dataset()[str(task.attrs["metric"])]
            chart(
                figure,
                f"{key}-{number}-items",
                read="Every item, untouched and without the heads.",
                source="Paired by item, as the effect's interval is.",
                table=items.to_dataframe(name="value").reset_index(),
                python=lines,
                title=False,
            )
    st.download_button(
        "The whole report",
        lambda: found.page,
        f"{key}.html",
        "text/html",
        key=f"{key} report",
        on_click="ignore",
    )


def _items(task: xr.DataTree) -> Any:
    metric = str(task.attrs["metric"])
    items = task["items"].to_dataset()[metric]
    treatments = [str(n) for n in telling.own_effects(task)["intervention"].values]
    shown = items.sel(intervention=["none", *treatments])
    if has_grid(items):
        return item_grid(shown, items.drop_sel(intervention=["none", *treatments]))
    if metric in telling.YES_OR_NO or items.sizes["item"] < telling.ITEMS:
        return None
    return item_scatter(shown)


def _choosing(array: xr.DataArray, by: str) -> None:
    """Heads by name, or the strongest of the map."""
    st.text_input(
        "Heads",
        key="heads",
        bind="query-params",
        help="Names with commas between, a lasso or clicks on the map, or the "
        "strongest of the map.",
    )
    left, right = st.columns(2, vertical_alignment="bottom")
    count = left.number_input("How many", 1, array.size, 5, key="count")
    right.button(
        "Take the strongest", on_click=_take, args=(array, int(count)), help=f"By {by}"
    )


def _map(reading: Reading, array: xr.DataArray, by: str, chosen: HeadSet) -> None:
    figure = selectable(head_map(array, layout.bounds(reading.atlas, by)), array)
    figure = framed(figure, [(each.layer, each.head) for each in chosen])
    chart(
        figure.update_layout(dragmode="lasso"),
        "ablate-map",
        read="Framed heads are taken out; click one, or draw a lasso around several.",
        source=str(array.attrs.get("source", "")),
        table=array.to_dataframe().reset_index(),
        python=f"{reading.python}\n\nfrom interp.viz.maps import head_map\n\n"
        f"head_map(heads[{by!r}]).show()",
        chosen=_lasso,
        modes=("points", "box", "lasso"),
    )


def _asked(reading: Reading, heads: str) -> Asked:
    task = selection.choose("Task", TASKS, "task", "nll")
    modes = st.pills(
        "Taken out by",
        get_args(Mode),
        default=["zero"],
        selection_mode="multi",
        key="modes",
        bind="query-params",
    )
    controls = selection.choose("Random controls", ["20", "none"], "controls", "20")
    return Asked(
        heads,
        task,
        cast(Any, tuple(modes)) or ("zero",),
        None if controls == "20" else 0,
        reading.max_tokens or TOKENS,
    )


def _said(reading: Reading, asked: Asked) -> None:
    """What the model says after a prompt, untouched and without the heads."""
    prompt = st.text_area(
        "Prompt", PROMPT, key="prompt", bind="query-params", height=70
    )
    if not prompt.strip():
        raise InputError("There is no prompt. Write at least a word.")
    free = [mode for mode in asked.modes if mode in FREE]
    mode = cast(Mode, free[0] if free else "zero")
    at = server()
    said = result(
        f"says {reading.key} {asked.heads} {mode} {prompt}",
        "what the model says",
        lambda tell: ablations.continuations(
            at.library, reading, asked.heads, mode, prompt, WORDS, tell
        ),
        button="Let it speak",
    )
    if said is None:
        return
    for column, (name, text) in zip(st.columns(len(said)), said.items(), strict=True):
        column.html(
            f"<b>{escape(name)}</b><div class='interp-note'>"
            f"{escape(visible(prompt, 400))}<b>{escape(visible(text, 2000))}</b></div>"
        )
    explain(
        f"Greedy continuation of the prompt; on the right {asked.heads[:80]} are taken "
        f"out by {mode}.",
        "A single text: look for effects in the numbers above.",
    )
    table = pd.DataFrame({"run": list(said), "text": list(said.values())})
    lines = (
        "import interp\nfrom interp.generation import generate\n"
        "from interp.inputs import prepare\nfrom interp.interventions import "
        f"AblateHeads\n\nmodel = interp.load({reading.model!r})\n"
        f'heads = interp.HeadSet.parse("{asked.heads}", model.anatomy)\n'
        f"with AblateHeads(heads, {mode!r})(model):\n"
        f"    ids = generate(model, prepare(model, {prompt!r}), {WORDS})\n"
        "print(model.tokenizer.decode(ids))"
    )
    downloads("continuations", table, lines)


def _take(array: xr.DataArray, count: int) -> None:
    st.session_state["heads"] = str(HeadSet.top(array, count))


def _lasso(selected: Any) -> None:
    places = [(int(point["x"]), int(point["y"])) for point in selected["points"]]
    if places:
        st.session_state["heads"] = ",".join(
            str(HeadId(*p)) for p in sorted(set(places))
        )


PAGE = Page(
    title="Ablate",
    path="ablate",
    question="What does the model lose without these heads?",
    render=render,
)
