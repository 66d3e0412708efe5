"""The labelled node of one utterance: sound or text, attention, saliency."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from interp.errors import UnsupportedModelError
from interp.heads import HeadSet
from interp.probes.crossattn.attention import Maps
from interp.probes.crossattn.forced import SPACES, Forced, Remembered
from interp.probes.crossattn.gradients import AT_THE_INPUT
from interp.probes.crossattn.parts import Parts
from interp.probes.crossattn.perturbation import HALVES
from interp.probes.crossattn.saliency import Options, Progress, saliency

BASELINES = ("attention", "rollout", "attention_value_norm", "attention_gradient")
"""Explanations made of attention alone, or nearly so; the first is its mean."""


def described(forced: Forced) -> xr.Dataset:
    """What was read and written, with its times."""
    utterance, window = forced.utterance, forced.utterance.window
    with torch.no_grad():
        scores = forced.scores(forced.states)[0].double().cpu().numpy()
    coords: dict[str, Any] = {
        "token": np.arange(len(utterance.words)),
        "token_text": ("token", np.array(utterance.words, dtype=object)),
        "token_id": ("token", forced.targets.cpu().numpy()),
        "position": np.arange(forced.n_positions),
    }
    says = {"units": "nats", "long_name": "log-probability, teacher-forced"}
    found: dict[str, Any] = {"log_probability": ("token", scores, says)}
    attrs: dict[str, Any] = {"name": utterance.name, "text": "".join(utterance.words)}
    seconds = forced.position_seconds
    if window is None or seconds is None:
        read = np.array(utterance.read[: forced.n_positions], dtype=object)
        coords["position_text"] = ("position", read)
        return xr.Dataset(found, coords, attrs)
    time = {"units": "s", "long_name": "begin"}
    coords["position_begin"] = ("position", seconds * coords["position"], time)
    found["waveform"] = (
        "sample",
        window.samples.astype(np.float32),
        {"units": "1", "long_name": "sound pressure, relative", "rate": window.rate},
    )
    if forced.has_features:
        rows = forced.input[0, :, : forced.n_frames].T.float().cpu().numpy()
        hop = seconds / forced.per_position
        coords["frame_begin"] = ("frame", hop * np.arange(forced.n_frames), time)
        says = {"units": "1", "long_name": "log-mel energy, as the model reads it"}
        found["features"] = (("frame", "channel"), rows, says)
    attrs |= {
        "begin": window.begin,
        "seconds": window.seconds,
        "rate": window.rate,
        "position_ms": 1000 * seconds,
    }
    return xr.Dataset(found, coords, attrs)


def attention_of(
    forced: Forced, heads: HeadSet | None
) -> tuple[xr.Dataset, list[dict[str, str]]]:
    """What the heads do, the explanations made of it, and which could not be made.

    Args:
        forced: The utterance.
        heads: The heads that the aggregate is the mean of; all for None.
    """
    skipped: list[dict[str, str]] = []
    maps = Maps(forced)
    weights = maps.weights
    grid = np.full((len(weights), weights.shape[1]), True)
    if heads is not None:
        grid[:] = False
        for each in heads:
            grid[each.layer, each.head] = True
    found = {"attention": weights[grid].mean(0)}
    for name, make in (
        ("rollout", maps.rollout),
        ("attention_value_norm", maps.times_value_norm),
        ("attention_gradient", maps.times_gradient),
    ):
        try:
            found[name] = make()
        except UnsupportedModelError as error:
            found[name] = np.full_like(found["attention"], np.nan)
            skipped.append({"what": name, "why": str(error)})
    dims = "token", "position"
    node = xr.Dataset(
        {
            "attention": (
                ("layer", "head", *dims),
                weights,
                {"units": "fraction", "long_name": "attention weight"},
            ),
            "aggregate": (
                dims,
                found["attention"],
                {"units": "fraction", "long_name": "mean weight of the heads"},
            ),
            "baselines": (
                ("baseline", *dims),
                np.stack([found[name] for name in BASELINES]),
                {"units": "1", "long_name": "explanation made of attention"},
            ),
        },
        {
            "baseline": np.array(BASELINES, dtype=object),
            "layer": np.arange(weights.shape[0]),
            "head": np.arange(weights.shape[1]),
        },
    )

    return node, skipped


def saliency_of(
    forced: Forced,
    methods: Sequence[str],
    options: Options,
    parts: Parts,
    progress: Progress,
) -> xr.Dataset:
    """Saliency by every method in every space, with what is known of its errors.

    Args:
        forced: The utterance.
        methods: Of `METHODS`.
        options: How much is computed.
        parts: Where finished pieces are kept.
        progress: Told of every piece.
    """
    spaces = forced.spaces
    shape = len(forced.targets), forced.n_positions
    every = np.full((len(spaces), len(methods), *shape), np.nan, np.float32)
    errors = np.full((len(spaces), *shape), np.nan, np.float32)
    halves = np.full((len(spaces), HALVES, *shape), np.nan, np.float32)
    gaps = np.full((2, len(spaces), shape[0]), np.nan)
    maps: dict[str, np.ndarray] = {}
    again = len(set(methods) & set(AT_THE_INPUT)) > 1
    for i, space in enumerate(spaces):
        shared = Remembered(forced.of(space)[1], 1, gradients=again)
        for j, method in enumerate(methods):
            if method not in AT_THE_INPUT:
                shared = None  # which lets its graph go
            made = saliency(forced, space, method, options, parts, progress, shared)
            every[i, j] = made["positions"]
            if "map" in made:
                maps[method] = made["map"]
            if "error" in made:
                errors[i], halves[i] = made["error"], made["halves"]
            if "total" in made:
                gaps[:, i] = _completeness(forced, space, made, options)
    dims = "token", "position"
    nats = {"units": "nats"}
    found: dict[str, Any] = {
        "saliency": (
            ("space", "attribution", *dims),
            every,
            {"units": "nats", "long_name": "saliency, magnitude"},
        ),
    }
    if maps:
        blank = np.full_like(next(iter(maps.values())), np.nan)
        whole = np.stack([maps.get(name, blank) for name in methods])
        of = ("attribution", "token", "frame", "channel")
        found["saliency_map"] = (of, whole, nats | {"long_name": "saliency"})
    if "perturbation" in methods:
        says = "standard error of the saliency by perturbation"
        of = ("space", *dims)
        found["monte_carlo_error"] = (of, errors, nats | {"long_name": says})
        says = "saliency by perturbation, from either half of the masks alone"
        of = ("space", "half", *dims)
        found["saliency_halves"] = (of, halves, nats | {"long_name": says})
    if "integrated_gradients" in methods:
        says = "sum of integrated gradients less what it should be, magnitude"
        of = ("space", "token")
        found["completeness_error"] = (of, gaps[0], nats | {"long_name": says})
        says = "log-probability less that of the baseline"
        found["completeness_gap"] = (of, gaps[1], nats | {"long_name": says})
    return xr.Dataset(
        found,
        {
            "space": np.array(spaces, dtype=object),
            "attribution": np.array(methods, dtype=object),
        },
    )


def explanations(node: xr.Dataset) -> dict[str, np.ndarray]:
    """Every map `[token, position]` of an utterance that is there, by its name."""
    found = {str(b): node["baselines"].sel(baseline=b).values for b in BASELINES}
    for space in node["space"].values:
        for method in node["attribution"].values:
            name = str(method) if space == SPACES[0] else f"{method}@{space}"
            one = node["saliency"].sel(space=space, attribution=method)
            found[name] = one.values
    return {name: rows for name, rows in found.items() if np.isfinite(rows).any()}


def only_visible(node: xr.Dataset, forced: Forced) -> xr.Dataset:
    """NaN where a token of a decoder alone sees nothing yet."""
    rows = xr.DataArray(forced.rows.cpu().numpy(), dims="token")
    seen = node["position"] <= rows
    names = ("attention", "aggregate", "baselines", "saliency")
    names = (*names, "monte_carlo_error", "saliency_halves")
    for name in names:
        if name in node:
            dims = node[name].dims
            node[name] = node[name].where(seen).transpose(*dims)
    return node


def _completeness(
    forced: Forced, space: Any, made: dict[str, np.ndarray], options: Options
) -> np.ndarray:
    """`[2, token]`: what integrated gradients miss, and the whole that they share."""
    values, scores = forced.of(space)
    with torch.no_grad():
        gap = scores(values) - scores(forced.baseline(space, options.fill))
    whole = gap[0].double().cpu().numpy()
    return np.stack([abs(made["total"] - whole), whole])
