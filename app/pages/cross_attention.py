"""Attention against saliency: of a recording, or of a text."""

import json
import tempfile
from pathlib import Path

import pandas as pd
import streamlit as st
import xarray as xr

from interp import catalog
from interp.app.explorer import selection
from interp.app.explorer.charts import chart
from interp.app.explorer.page import Page, note, section
from interp.app.explorer.server import server
from interp.app.explorer.waiting import result
from interp.app.progress import Progress
from interp.errors import InputError
from interp.probes.crossattn import METHODS, compare
from interp.tasks.reading import SHIPPED
from interp.viz.crossattn import findings
from interp.viz.crossattn_curves import agreement_plot
from interp.viz.crossattn_figures import aligned
from interp.viz.crossattn_reading import named, pairs, preferred, utterances
from interp.viz.maps import head_map

SPEECH = "whisper-base"
RECORDING = "beckett"
SOUND_MB = 16
"""Largest recording, in MiB."""

WRITTEN = 24
"""Output tokens that are explained."""

QUICK = "gradient"
"""Method that costs least, and is run unasked."""

SOURCE = "Whether attention explains is asked in arXiv:1902.10186 and arXiv:1908.04626."


def render() -> None:
    """Choose what is read, and see whether attention lies where it matters."""
    known = [*([SPEECH] if catalog.installed(SPEECH) else []), *selection.models()]
    left, middle, right = st.columns([2, 2, 1])
    with left:
        model = selection.choose("Model", known, "model")
    with middle:
        if model == SPEECH:
            given = selection.choose("Recording", list(_recordings()), "recording")
        else:
            given = selection.choose("Text", selection.texts(), "text", SHIPPED)
    count = right.number_input(
        "Tokens", 2, 64, WRITTEN, key="written", bind="query-params"
    )
    methods = st.pills(
        "Methods of saliency",
        METHODS,
        default=[QUICK],
        selection_mode="multi",
        key="methods",
        bind="query-params",
    )
    if model == SPEECH:
        _add_recording()
    if not methods:
        raise InputError("No method is chosen. Choose one or more.")
    inputs = _inputs(model, given)
    chosen = tuple(str(each) for each in methods)

    def work(tell: Progress) -> xr.DataTree:
        with server().library.use(model, tell) as loaded:
            return compare(
                loaded,
                inputs,
                methods=chosen,
                max_tokens=int(count),
                faithfulness=False,
                progress=tell,
            )

    tree = result(
        f"crossattn {model} {given} {chosen} {count}",
        f"{model} reads {given.partition(' #')[0]}",
        work,
        button="Compare attention with saliency",
    )
    if tree is not None:
        _show(tree, _lines(model, given, chosen, int(count)))


def _show(tree: xr.DataTree, lines: str) -> None:
    with section():
        told = findings(tree)
        note("\n".join(f"{each.headline}: {each.sentence}" for each in told))
    for name in utterances(tree)[:3]:
        node = tree.children[name]
        utterance = node.to_dataset()
        known = {
            named(method, space): (space, method) for space, method in pairs(utterance)
        }
        with section(str(node.attrs.get("text", name))[:200]):
            label = selection.choose("Saliency", list(known), f"saliency_{name}")
            space, method = known[label]
            table = utterance["aggregate"].to_dataframe(name="attention").reset_index()
            chart(
                aligned(utterance, method, space),
                f"aligned-{name}",
                read="Each row is a token that was written; attention above, what "
                "matters for it below, on one axis of what was read.",
                source=SOURCE,
                table=table,
                python=f"{lines}\n\n{_DRAW}"
                f'aligned(tree["{name}"].to_dataset(), {method!r}, {space!r}).show()',
            )
    agreement = tree["agreement"].to_dataset()
    published = json.loads(tree.attrs.get("published", "[]"))
    left, right = st.columns(2, gap="medium")
    with left, section("How far they agree"):
        chart(
            agreement_plot(agreement, published),
            "agreement",
            read="Correlation of attention with each saliency, with its interval; the "
            "gray bar is what chance gives.",
            source=SOURCE,
            table=agreement["overall"].to_dataframe().reset_index(),
            python=f"{lines}\n\nfrom interp.viz.crossattn_curves import agreement_plot"
            '\n\nagreement_plot(tree["agreement"].to_dataset(), []).show()',
        )
    with right, section("Head by head"):
        space, method = preferred(agreement)
        at = {"space": space, "attribution": method, "measure": "pearson"}
        array = agreement["by_head"].sel(at).transpose("layer", "head")
        array = array.assign_attrs(
            units="1", long_name=f"r with {named(method, space)}"
        )
        bare = array.drop_vars([*at], errors="ignore")
        chart(
            head_map(bare),
            "agreement-by-head",
            read="A cell is a head: 1 where it looks exactly at what matters.",
            source=SOURCE,
            table=pd.DataFrame(bare.to_dataframe(name="r").reset_index()),
            python=f"{lines}\n\nfrom interp.viz.maps import head_map\n\nhead_map("
            f'tree["agreement"]["by_head"].sel({at})).show()',
        )


def _recordings() -> dict[str, Path]:
    """Recordings that may be read: that of the catalog, and this session's own."""
    found = {}
    if catalog.installed(RECORDING):
        found[RECORDING] = catalog.fetch(RECORDING) / f"{RECORDING}.wav"
    asked = st.query_params.get("recording", "")
    mine = [*st.session_state.get("recordings", []), asked]
    found |= {name: path for name, path in server().uploads.items() if name in mine}
    if not found:
        raise InputError(
            "There is no recording. Upload one, or fetch the catalog's with "
            f"interp.catalog.fetch({RECORDING!r})."
        )
    return found


def _inputs(model: str, given: str) -> Path | str:
    if model == SPEECH:
        return _recordings()[given]
    text = server().texts.get(given)
    if text is None:
        raise InputError(f"The text {given} is not kept any more. Paste it again.")
    return text


def _add_recording() -> None:
    with st.popover("Upload a recording"):
        file = st.file_uploader(
            "WAV or FLAC", ("wav", "flac"), max_upload_size=SOUND_MB
        )
        st.button("Read this recording", on_click=_keep, args=(file,))


def _keep(file: object) -> None:
    if file is None:
        return
    content: bytes = file.getvalue()  # type: ignore[attr-defined]
    folder = Path(tempfile.mkdtemp(dir=server().folder))
    name = f"recording #{folder.name}"
    path = folder / "sound.wav"
    path.write_bytes(content)
    server().uploads[name] = path
    st.session_state["recordings"] = [*st.session_state.get("recordings", []), name]
    st.session_state["recording"] = name


def _lines(model: str, given: str, methods: tuple[str, ...], count: int) -> str:
    what = f'"{given}.wav"' if model == SPEECH else 'open("text.txt").read()'
    return (
        "import interp\nfrom interp.probes.crossattn import compare\n\n"
        f'model = interp.load("{model}")\n'
        f"tree = compare(model, {what}, methods={methods},\n"
        f"               max_tokens={count}, faithfulness=False)"
    )


_DRAW = "from interp.viz.crossattn_figures import aligned\n\n"

PAGE = Page(
    title="Cross-attention",
    path="crossattn",
    question="Does a head look where it matters, in speech or text?",
    render=render,
    alone=True,
)
