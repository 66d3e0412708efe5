"""Every detector on every head of a model, over several texts, with intervals."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.capture import union
from interp.errors import InputError, NotCapturedError
from interp.metrics import BLOCKS, LEVEL, RESAMPLES, block_means, bootstrap_interval
from interp.probes.activations import LOOSE_RATIO, MassiveActivations, residual
from interp.probes.detector import (
    HEADS,
    REPEATED_RANDOM,
    TEXT,
    Detector,
    RowDetector,
    site_of,
    statistic,
)
from interp.probes.registry import Chosen, resolve
from interp.probes.sinks import SinkTokens
from interp.tasks import BLOCK, COPIES, repeated_random_for
from interp.tracing import trace as trace_model

if TYPE_CHECKING:
    from interp.models import Model

Texts = str | Sequence[str] | Mapping[str, str]
"""One text, several, or several by name."""

PROVENANCE = ("model", "model_hash", "model_type", "device", "dtype", "impl", "versions")


@dataclass(frozen=True)
class Reading:
    """What the detectors of one task measured on one input."""

    name: str
    """Of the text, or `repeated_random_<seed>`."""
    measured: dict[str, xr.DataArray]
    """Over (layer, head), by the detector's name."""
    blocks: dict[str, tuple[xr.DataArray, xr.DataArray]]
    """Means and counts of contiguous queries, of detectors that have rows."""
    site: str
    """Of the heads."""
    skipped: dict[str, str]
    """What could not be measured, and why."""


def atlas(
    model: "Model",
    texts: Texts,
    *,
    detectors: Chosen = None,
    seeds: Sequence[int] = (0, 1, 2),
    block: int = BLOCK,
    copies: int = COPIES,
    max_tokens: int | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    store: str | Path | None = None,
    resume: bool = True,
    command: str = "",
    progress: Any = None,
    trace: Callable[..., xr.DataTree] = trace_model,
) -> xr.DataTree:
    """Run detectors on every head.

    Each text is traced once, with all that its detectors need together. Detectors of
    the task "repeated_random" read a block of random tokens that stands several times,
    once for each of `seeds`.

    Args:
        model: As `interp.load` returns it.
        texts: One text, several, or several by name.
        detectors: Names, or detectors with other options; None is all. Those over
            tokens fill the nodes of the texts, which every atlas has.
        seeds: Of the repeated random tokens, one trace each.
        block: Tokens of the random block; shorter where the context is.
        copies: How many times the block stands.
        max_tokens: Keep at most this many tokens of each text.
        level: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        store: Folder for the traces, one store each; None keeps them in memory.
        resume: Go on with what an interrupted run left in `store`.
        command: How to make this atlas again, for the record.
        progress: Passed on to every trace.
        trace: Traces a model; `interp.trace` or a stand-in.

    Returns:
        A node `heads` over (layer, head) with a mean over texts for each detector, its
        `<name>_interval` (layer, head, bound) and its `<name>_texts` (text, layer,
        head); and a node `text_<n>` for each text, over its tokens and layers.

    Raises:
        InputError: No text, an unknown detector, or detectors of different sites.
    """
    named = _named(texts)
    chosen = resolve(detectors)
    of_heads = [detector for detector in chosen if detector.dims == HEADS]
    site = _common_site(of_heads)
    of_tokens = {each.name: each for each in chosen if each.dims != HEADS}
    sink_tokens = replace(of_tokens.get("sink_tokens", SinkTokens()), site=site)
    massive = of_tokens.get("massive_activations", MassiveActivations())
    # The registry's types; anything else under these names is the caller's own.
    assert isinstance(sink_tokens, SinkTokens), sink_tokens
    assert isinstance(massive, MassiveActivations), massive
