"""`trace`: one forward pass, and what every head did in it."""

import json
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import nn

from interp.capture import Capture
from interp.errors import InputError
from interp.inputs import Inputs, prepare
from interp.kernels.definitions import Pattern
from interp.models import Model, load
from interp.recording import Progress, Recorder
from interp.storage import Memory, Store
from interp.tap import tap

PATTERN_LIMIT = 2048
"""Tokens up to which a dense pattern is given on request."""


def trace(
    model: Model | nn.Module,
    inputs: Any,
    *,
    tokenizer: Any = None,
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
        model: From `interp.load`, or a transformers module (with `tokenizer`).
        inputs: A text, several texts (a batch, padded), token ids, or a mapping of
            ready model inputs, such as `input_features` and `decoder_input_ids`.
        tokenizer: For a module that comes without one.
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
    model = model if isinstance(model, Model) else load(model, tokenizer=tokenizer)
    model.anatomy.require_attention()
    capture = capture or Capture()
    prepared = prepare(model, inputs, max_tokens)
    _check_patterns(capture, prepared)
    provenance = _provenance(model, prepared, capture, name, impl) | (attrs or {})
    if out is None:
        room: Memory | Store = Memory()
    else:
        room = Store(Path(out), provenance, resume)
        if room.is_complete:
            return room.finish({})
    recorder = Recorder(model, prepared, capture, room, progress, impl)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_evaluating(model.module))
        padding = prepared.decoder.real
        tapped = tap(
            model.module,
            recorder.visit,
            anatomy=model.anatomy,
            wanted=recorder.wanted,
            impl=impl,
            padding=padding,
        )
        stack.enter_context(tapped)
        recorder.watch(stack)
        model.module(**prepared.forward, **_lean(model.module))
    return room.finish(
        {
            **provenance,
            "implementations": ", ".join(sorted(recorder.implementations)),
            "skipped": json.dumps(recorder.skipped),
        }
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
        "door": "attention interface",
        "versions": json.dumps({"python": platform.python_version(), **versions}),
        "statistics": json.dumps(
            [repr(s) for s in capture.statistics]
            + ([repr(capture.edges)] if capture.edges else [])
            + (["residual"] if capture.residual else [])
        ),
    }


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; each part gets its own mode back."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def _lean(module: nn.Module) -> dict[str, Any]:
    """Options that spare a forward what nobody reads: the cache and most logits."""
    import inspect

    known = inspect.signature(module.forward).parameters
    lean = {"use_cache": False, "logits_to_keep": 1}
    return {name: value for name, value in lean.items() if name in known}
