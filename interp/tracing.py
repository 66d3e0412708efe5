"""`trace`: one forward pass, and what every head did in it."""

import json
import platform
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr

from interp.adapters import ndif, nnsight
from interp.adapters.transformer_lens import is_bridge, unbridged
from interp.capture import Capture
from interp.editing import in_force
from interp.errors import InputError
from interp.forward import evaluating, lean
from interp.inputs import Inputs, prepare
from interp.kernels.definitions import Pattern
from interp.models import Model, load
from interp.recording import Progress, Recorder
from interp.storage import Memory, Store
from interp.tap import door_of, seen_attention, tap

Door = Literal["auto", "original", "nnsight"]

DOOR_OF_NNSIGHT = "nnsight trace, at the call of the attention interface"

PATTERN_LIMIT = 2048
"""Tokens up to which a dense pattern is given on request."""


def trace(
    model: Any,
    inputs: Any,
    *,
    tokenizer: Any = None,
    door: Door = "auto",
    remote: bool | str = False,
    capture: Capture | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    max_tokens: int | None = None,
    name: str = "text",
    attrs: dict[str, Any] | None = None,
    progress: Progress | None = None,
    impl: str = "auto",
) -> xr.DataTree:
    """Statistics of every attention head on a text, and of the residual stream.

    The model runs once, untouched: its output comes from a fused kernel, and nothing of
    size query x key is made unless `pattern` is asked for.

    Args:
        model: From `interp.load`, or what it takes: a transformers module (with
            `tokenizer`), a TransformerBridge, an nnsight model.
        inputs: A text, several texts (a batch, padded), token ids, or a mapping of
            ready model inputs, such as `input_features` and `decoder_input_ids`.
        tokenizer: For a module that comes without one.
        door: `original` puts a TransformerBridge's model back as it was meanwhile,
            `nnsight` runs in a trace of the given nnsight model; `auto` sees the
            model as it is.
        remote: For an nnsight model, whose weights need not be here: run it on NDIF, on
            the server of this address, or, with `local`, run here what would be sent.
            The statistics are made there; the residual stream is left out.
        capture: What to record; every row and column statistic by default.
        out: A Zarr store to grow in, layer by layer; in memory if None.
        resume: Go on with what an interrupted run left in `out`.
        max_tokens: Keep at most this many tokens of each text.
        name: What the text is called in reports.
        attrs: Added to the provenance.
        progress: Called after each layer.
        impl: Implementation of the statistics, as in `interp.kernels.statistics`.

    Returns:
        A tree with a node a site (`self`, `cross`, `encoder`) and the residual stream;
        arrays over (layer, head, query) or (layer, head, key), with a leading `sample`
        axis for several texts. Units are in each array's attrs, provenance in the
        root's.

    Raises:
        InputError: The text is empty, too long, or cannot be read.
        UnsupportedModelError: The model's attention cannot be reached.
        StorageError: `out` holds something else or cannot be written.
    """
    given = model
    _check_door(given, "nnsight" if remote and door == "auto" else door)
    if remote:
        model = ndif.remote_model(given, tokenizer)
        _check_remote(model, door)
    elif not isinstance(model, Model):
        model = load(model, tokenizer=tokenizer)
    if door == "original" and in_force(model.module):
        raise InputError(
            "door='original' was asked for within an intervention on the bridge, whose "
            "hooks lie on the bridge's parts. Open the intervention and the trace "
            "within interp.adapters.transformer_lens.unbridged(model.module)."
        )
    model.anatomy.require_attention()
    capture = capture or Capture()
    prepared = prepare(model, inputs, max_tokens)
    _check_patterns(capture, prepared)
    with ExitStack() as stack:
        if door == "original":
            stack.enter_context(unbridged(model.module))
        provenance = _provenance(model, prepared, capture, name, impl)
        if remote:
            provenance["door"] = ndif.DOOR
        elif door == "nnsight":
            provenance["door"] = DOOR_OF_NNSIGHT
        provenance |= attrs or {}
        if out is None:
            room: Memory | Store = Memory()
        else:
            room = Store(Path(out), provenance, resume)
            if room.is_complete:
                return room.finish({})
        recorder = Recorder(model, prepared, capture, room, progress, impl)
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model.module))
        stack.callback(recorder.transfer.flush)
        watched = model.module, recorder.visit
        options = {
            "anatomy": model.anatomy,
            "wanted": recorder.wanted,
            "impl": impl,
            "padding": prepared.decoder.real,
        }
        extra = lean(model.module)
        forward = {**prepared.forward, **extra}
        if remote:
            if capture.residual:
                skipped = {"what": "residual stream", "why": ndif.RESIDUAL}
                recorder.skipped.append(skipped)
            asked = given, model, prepared, extra, recorder.asked, remote
            for visit in ndif.forward(*asked):
                recorder.visit(visit)
        elif door == "nnsight":
            recorder.watch(stack)
            attention = seen_attention(*watched, **options)
            nnsight.forward(given, model.anatomy.sites, attention, forward)
        else:
            recorder.watch(stack)
            stack.enter_context(tap(*watched, **options))
            model.module(**forward)
    return room.finish(
        {
            **provenance,
            "implementations": ", ".join(sorted(recorder.implementations)),
            "skipped": json.dumps(recorder.skipped),
        }
    )


def _check_door(model: Any, door: Door) -> None:
    kinds = {
        "auto": lambda given: True,
        "original": is_bridge,
        "nnsight": nnsight.is_wrapper,
    }
    if door not in kinds:
        raise InputError(
            f"door={door!r} was asked for; there are {', '.join(kinds)}. Choose one."
        )
    if not kinds[door](model):
        raise InputError(
            f"door={door!r} was asked for; it is for "
            f"{'a TransformerBridge' if door == 'original' else 'an nnsight model'}, "
            f"got {type(model).__name__}. Pass that object, or leave the door out."
        )


def _check_remote(model: Model, door: Door) -> None:
    if door == "original" or in_force(model.module):
        raise InputError(
            "remote=... was asked for "
            + ("with door='original'" if door == "original" else "in an intervention")
            + ", which acts on a model that is here. Leave one of them out."
        )


def _check_patterns(capture: Capture, inputs: Inputs) -> None:
    wants = any(isinstance(s, Pattern) for s in capture.statistics)
    ids = inputs.decoder.ids if inputs.decoder.ids is not None else inputs.encoder.ids
    if wants and ids is not None and ids.shape[1] > PATTERN_LIMIT:
        raise InputError(
            f"Dense patterns of {ids.shape[1]:,} tokens were asked for; at most "
            f"{PATTERN_LIMIT:,} are given. Ask for BlockMap, or cut the text."
        )


def _provenance(
    model: Model, inputs: Inputs, capture: Capture, name: str, impl: str
) -> dict[str, Any]:
    side = inputs.decoder if inputs.decoder.ids is not None else inputs.encoder
    config = model.module.config
    packages = ("interp", "torch", "transformers", "numpy", "xarray", "zarr")
    versions = {package: version(package) for package in packages}
    return {
        "model": model.name,
        "model_hash": model.content_hash,
        "model_type": config.model_type,
        "input_hash": inputs.content_hash,
        "text_name": name,
        "n_tokens": max((len(text) for text in side.text), default=0),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "impl": impl,
        "interventions": json.dumps([str(each) for each in in_force(model.module)]),
        "door": door_of(model.module, model.anatomy),
        "versions": json.dumps({"python": platform.python_version(), **versions}),
        "statistics": json.dumps(
            [repr(s) for s in capture.statistics]
            + ([repr(capture.edges)] if capture.edges else [])
            + (["residual"] if capture.residual else [])
            + (["vectors"] if capture.vectors else [])
        ),
    }
