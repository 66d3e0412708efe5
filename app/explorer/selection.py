"""What is looked at, shared by all pages and kept in the address.

Every choice is a widget that is bound to the address: a link, a reload and another page
show the same. Names of the address: `source`, `model`, `text`, `tokens`, `head`, and
what a page adds under its own names.
"""

import shutil
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st
import xarray as xr

from interp.app.explorer import readings, stores
from interp.app.explorer.models import readers
from interp.app.explorer.page import note
from interp.app.explorer.readings import TOKENS, Reading
from interp.app.explorer.server import server
from interp.app.explorer.waiting import result
from interp.errors import InputError, InterpError
from interp.heads import HeadId, HeadSet
from interp.tasks.reading import ORCHARD, SHIPPED

LIVE = "run a model here"
"""The source that is no store."""

MOST = 8192
"""Tokens that can be asked for."""

TEXT_MB = 1
"""Largest text file, in MiB."""

Open = Callable[[], Reading | None]


def choose(
    label: str, options: Sequence[str], key: str, default: str = "", **more: Any
) -> str:
    """One of some options, bound to the address under `key`.

    Says so if the address names something that is not there.
    """
    asked, lost = st.query_params.get(key), f"lost {key}"
    if asked and asked not in options and key not in st.session_state:
        st.session_state[lost] = asked
    if lost in st.session_state:
        note(
            f"The address asked for {key} = {st.session_state[lost][:60]}, which is "
            "not here (any more)."
        )
    index = options.index(default) if default in options else 0
    if st.session_state.get(key, options[index]) not in options:
        del st.session_state[key]
    return st.selectbox(  # type: ignore[call-overload]
        label,
        options,
        index=index,
        key=key,
        bind="query-params",
        on_change=lambda: st.session_state.pop(lost, None),
        **more,
    )


def sources() -> dict[str, Path | None]:
    """What can be looked at: stores by name, and a model that runs here."""
    found: dict[str, Path | None] = {}
    for path in server().settings.stores:
        name = path.name if path.name not in found else str(path)
        found[name] = path
    asked = st.query_params.get("source", "")
    mine = [*st.session_state.get("uploads", []), asked]
    found |= {n: p for n, p in server().uploads.items() if n in mine}
    return {**found, LIVE: None}


def ask() -> Open:
    """The widgets that say what is looked at.

    Returns:
        Opens it, where its progress is to be shown; None while it is being made.

    Raises:
        InterpError: A store is gone or damaged.
    """
    known = sources()
    source = choose("Source", list(known), "source")
    path = known[source]
    if path is None:
        model = choose("Model", models(), "model")
        text = choose("Text", texts(), "text", SHIPPED)
        return partial(run_here, model, text, tokens())
    nodes = readings.nodes_of(path)
    return partial(open_stored, path, nodes[choose("Text", list(nodes), "text")])


def open_stored(path: Path, node: str | None = None) -> Reading | None:
    """A text of a store, the first unless one is named; None while it is read."""
    node = node or next(iter(readings.nodes_of(path).values()))
    return result(
        f"stored {path} {node} {stores.identity(path)}",
        f"reading {path.name}",
        lambda tell: readings.stored(path, node),
    )


def tokens() -> int:
    """How much of a text is read."""
    return int(
        st.number_input(
            "Tokens, at most",
            8,
            MOST,
            TOKENS,
            step=64,
            key="tokens",
            bind="query-params",
            help="The text is cut here. Time grows with the square of it.",
        )
    )


def run_here(model: str, text: str, tokens: int, ablated: str = "") -> Reading | None:
    """A text under a model that runs here; None while it runs.

    Args:
        model: One of `models()`.
        text: One of `texts()`.
        tokens: At most so many are read.
        ablated: Heads that are taken out, as `L1.H2,L3.H4`.
    """
    content = server().texts.get(text)
    if content is None:
        raise InputError(f"The text {text} is not kept any more. Paste it again.")
    library = server().library
    without = f" without {ablated}" if ablated else ""
    return result(
        f"run {model} {tokens} {ablated} {text}",
        f"{model}{without} reads {text.partition(' #')[0]}",
        lambda tell: readings.run(library, model, content, text, tokens, tell, ablated),
    )


def models() -> list[str]:
    """Models that may be run: the one that was named, and what the catalog has here."""
    return list(dict.fromkeys([server().settings.model, *readers()]))


def texts() -> list[str]:
    """Labels of texts: shipped ones, and what this session pasted or was linked to."""
    mine = [*st.session_state.get("texts", [])]
    asked = [st.query_params.get(key, "") for key in ("text", "text_b")]
    known = [each for each in (*mine, *asked) if server().texts.get(each) is not None]
    return list(dict.fromkeys([SHIPPED, ORCHARD, *known]))


def add_text() -> None:
    """A way to bring a text: pasted, or from a file."""
    with st.popover("Paste a text", icon=":material/content_paste:", width="stretch"):
        st.text_area("Text", key="pasted", height=200, placeholder="Any text")
        file = st.file_uploader("or a UTF-8 file", "txt", max_upload_size=TEXT_MB)
        st.button("Read this text", on_click=_keep_text, args=(file,), type="primary")
        if problem := st.session_state.pop("text problem", ""):
            note(problem)


def add_store() -> None:
    """A way to bring a store: a zip file of it."""
    with st.popover("Upload a store", icon=":material/upload:", width="stretch"):
        file = st.file_uploader(
            "A zip file of an atlas or a trace", "zip", max_upload_size=stores.UPLOAD_MB
        )
        st.button("Open this store", on_click=_keep_store, args=(file,))
        if problem := st.session_state.pop("store problem", ""):
            note(problem)


def head(reading: Reading, key: str = "head") -> HeadId:
    """The head that all pages look at; the strongest in induction unless one is named.

    Raises:
        InputError: The address or the reader names no head of this model.
    """
    named = st.session_state.get(key) or ""
    if named:
        return next(iter(HeadSet.parse(named, default_map(reading))))
    return next(iter(HeadSet.top(default_map(reading), 1)))


def head_box() -> None:
    """Where a head is named; a click on any map fills it too."""
    st.text_input(
        "Head",
        key="head",
        bind="query-params",
        placeholder="L12.H7",
        help="Layer and head, both from 0. A click on a map fills it.",
    )


def pick(layer: int, head: int, key: str = "head") -> None:
    """Make a head the one that all pages look at. Only from callbacks."""
    st.session_state[key] = str(HeadId(layer, head))


def default_map(reading: Reading) -> xr.DataArray:
    """What names the head that is shown first."""
    heads = reading.heads
    for name in ("induction", "sinks", *reading.detectors):
        if name in heads and heads[name].notnull().any():
            return heads[name]
    raise InputError(f"{reading.title} has no numbers of heads. Choose another source.")


def _keep_text(file: Any) -> None:
    text = st.session_state.get("pasted", "")
    if file is not None:
        try:
            text = file.getvalue().decode("utf-8-sig")
        except UnicodeDecodeError:
            st.session_state["text problem"] = "This file is not UTF-8. Convert it."
            return
    if not text.strip():
        st.session_state["text problem"] = "There is no text. Paste at least a word."
        return
    label = server().texts.add(text)
    st.session_state["texts"] = [*st.session_state.get("texts", []), label]
    st.session_state["source"], st.session_state["text"] = LIVE, label


def _keep_store(file: Any) -> None:
    if file is None:
        st.session_state["store problem"] = "Choose a zip file first."
        return
    # Nobody can guess the name, which is all that opens it.
    name = f"{file.name} #{uuid.uuid4().hex[:16]}"
    folder = server().folder / uuid.uuid4().hex
    try:
        path = stores.unpack(file, folder)
        stores.open_store(path)
    except InterpError as error:
        shutil.rmtree(folder, ignore_errors=True)
        st.session_state["store problem"] = str(error)
        return
    server().uploads[name] = path
    st.session_state["uploads"] = [*st.session_state.get("uploads", []), name]
    st.session_state["source"] = name
