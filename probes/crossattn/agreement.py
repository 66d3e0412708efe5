"""Agreement of attention with saliency by head, by layer and in all, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from interp.probes.crossattn.measures import MEASURES, TOP, alike, rotated
from interp.uncertainty import (
    LEVEL,
    RESAMPLES,
    bootstrap_interval,
    statistic_interval,
)

SOURCE = "Papi et al. 2025, arXiv:2509.18010"

OVER = ("tokens", "utterances")

_PEARSON = list(MEASURES).index("pearson")

LONG_NAMES = {
    "overall": "agreement of attention with saliency",
    "by_layer": "agreement of a layer's mean attention with saliency",
    "by_head": "agreement of a head's attention with saliency",
    "by_index": "agreement of heads of one number, mean over layers, with saliency",
    "of_baseline": "agreement of a cheap explanation with saliency",
}


def token_values(utterance: xr.Dataset, top: float = TOP) -> xr.Dataset:
    """Every measure of every token of one utterance.

    Args:
        utterance: Holds `attention` (layer, head, token, position), `aggregate` (token,
            position), `baselines` (baseline, token, position) and `saliency` (space,
            attribution, token, position).
        top: Share of positions whose overlap is `topk`.

    Returns:
        The variables of `LONG_NAMES`, over (space, attribution, measure, token) and
        what their names say. Peaks are in positions. `halves` (space, token): Pearson
        correlation of the two halves of a perturbation.
    """
    attention = utterance["attention"]
    views = {
        "overall": utterance["aggregate"],
        "by_layer": attention.mean("head"),
        "by_head": attention,
        "by_index": attention.mean("layer"),
        "of_baseline": utterance["baselines"],
    }
    saliency = utterance["saliency"].transpose(
        "space", "attribution", "token", "position"
    )
    found = {}
    for name, view in views.items():
        rows = view.transpose(..., "token", "position")
        values = [
            [alike(rows.values, of.values, top) for of in each] for each in saliency
        ]
        kept = [str(d) for d in rows.dims if d not in ("token", "position")]
        dims = ("space", "attribution", "measure", *kept, "token")
        found[name] = (dims, np.array(values))
    if "saliency_halves" in utterance:
        pairs = utterance["saliency_halves"].transpose("half", "space", ...).values
        same = [alike(a, b, top)[_PEARSON] for a, b in zip(*pairs, strict=True)]
        found["halves"] = (("space", "token"), np.array(same))
    coords: dict[str, Any] = {
        name: attention[name] if name in attention.coords else utterance[name]
        for name in ("layer", "head", "space", "attribution", "baseline", "token")
        if name in utterance.coords
    }
    coords["measure"] = np.array(MEASURES, dtype=object)
    words = ["token_text", "token_id"]
    return xr.Dataset(found, coords).drop_vars(words, errors="ignore")


def summary(
    values: Sequence[xr.Dataset],
    rotations: Sequence[np.ndarray],
    *,
    unit: float,
    unit_name: str,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> xr.Dataset:
    """Means over utterances of means over tokens, with intervals and chance.

    Args:
        values: From `token_values`, one an utterance.
        rotations: From `rotations`, of the same utterances.
        unit: What a position is, in `unit_name`.
        unit_name: Unit of the peaks.
        level: Share inside an interval.
        resamples: Of intervals, and of chance.
        seed: Of both.

    Returns:
        Each variable with its interval over tokens; `overall` also over utterances
        (NaN for one), with what chance gives (`overall_null`, `overall_p`): every
        token's attention is rotated in time by a random number of positions.
        `coverage` and `context_mixing` by attribution. Of a perturbation also `ceiling`
        (space), the largest correlation that its number of masks allows, and
        `without_noise` (space), Pearson's correlation divided by it.
    """
    each = [scaled(one, unit) for one in values]
    pooled = xr.concat(each, "token", join="outer", coords="minimal", compat="override")
    weights = xr.DataArray(
        np.concatenate([np.full(o.sizes["token"], 1 / o.sizes["token"]) for o in each]),
        dims="token",
    )
    pooled = pooled.drop_vars("token")
    options = {"level": level, "resamples": resamples, "seed": seed}
    found = {}
    for name in LONG_NAMES:
        means = xr.concat([one[name].mean("token") for one in each], "utterance")
        attrs = {"units": f"see measure_units ({unit_name})", "source": SOURCE}
        attrs["long_name"] = LONG_NAMES[name]
        found[name] = means.mean("utterance").assign_attrs(attrs)
        if name == "by_index":
            continue
        over = _interval(pooled[name], "token", weights=weights, **options)
        if name == "overall":
            of_utterances = _interval(means, "utterance", **options)
            over = xr.concat([over, of_utterances], "over").assign_coords(
                over=np.array(OVER, dtype=object)
            )
        found[f"{name}_interval"] = over.assign_attrs(attrs)
    found |= _chance(found["overall"], rotations, unit, resamples, level, seed)
    if "states" in found["overall"]["space"].values:
        found |= _mixing(pooled["overall"], weights, found["overall"], options)
    if "halves" in pooled:
        found |= _without_noise(pooled, weights, options)
    units = [unit_name if m == "peak" else "1" for m in MEASURES]
    found["measure_units"] = ("measure", np.array(units, dtype=object))
    return xr.Dataset(found)


def rotations(utterance: xr.Dataset, top: float = TOP) -> np.ndarray:
    """Agreement of the rotated aggregate.

    Returns:
        `[space, attribution, measure, token, shift]`.
    """
    saliency = utterance["saliency"].transpose(
        "space", "attribution", "token", "position"
    )
    rows = utterance["aggregate"].values
    return np.array(
        [[rotated(rows, of.values, top) for of in each] for each in saliency]
    )


def scaled(values: xr.Dataset, unit: float) -> xr.Dataset:
    """Values whose peaks are in units of time instead of positions."""
    factor = xr.where(values["measure"] == "peak", unit, 1.0)
    measured = [name for name in values.data_vars if "measure" in values[name].dims]
    return values.assign({name: values[name] * factor for name in measured})


def _interval(values: xr.DataArray, dim: str, **options: object) -> xr.DataArray:
    """Interval of the mean, one measure at a time: resamples of all would be many."""
    parts = [
        bootstrap_interval(values.isel(measure=[n]), dim, **options)  # type: ignore[arg-type]
        for n in range(values.sizes["measure"])
    ]
    return xr.concat(parts, "measure").transpose(..., "bound")


def _chance(
    overall: xr.DataArray,
    each: Sequence[np.ndarray],
    unit: float,
    draws: int,
    level: float,
    seed: int,
) -> dict[str, xr.DataArray]:
    rng = np.random.default_rng(seed)
    total = np.zeros(())
    for table in each:
        known = np.isfinite(table).any((0, 1, 2)).sum(-1)
        shifts = rng.integers(0, np.maximum(known, 1), size=(draws, len(known)))
        tokens = np.arange(len(known))
        drawn = table[..., tokens, shifts]  # [space, attribution, measure, draw, token]
        count = np.isfinite(drawn).sum(-1)
        total = total + np.nansum(drawn, -1) / np.where(count > 0, count, np.nan)
    null = np.array(total / len(each))
    peak = list(MEASURES).index("peak")
    null[:, :, peak] *= unit
    tail = (1 - level) / 2
    bounds = np.moveaxis(np.quantile(null, [tail, 1 - tail], axis=-1), 0, -1)
    own = overall.transpose("space", "attribution", "measure").values[..., None]
    less = np.array([m in ("js_distance", "peak") for m in MEASURES])[:, None]
    as_good = np.where(less, null <= own, null >= own).sum(-1)
    p = np.where(np.isfinite(own[..., 0]), (as_good + 1) / (draws + 1), np.nan)
    dims = ("space", "attribution", "measure")
    says = "attention rotated in time by a random number of positions, token by token"
    return {
        "overall_null": xr.DataArray(
            bounds,
            dims=(*dims, "bound"),
            attrs={"units": "as overall", "long_name": f"range of chance: {says}"},
        ),
        "overall_p": xr.DataArray(
            p,
            dims=dims,
            attrs={"units": "1", "long_name": f"one-sided p against {says}"},
        ),
    }


def _mixing(
    tokens: xr.DataArray,
    weights: xr.DataArray,
    overall: xr.DataArray,
    options: dict,
) -> dict[str, xr.DataArray]:
    """What cross-attention covers of encoder outputs, and what the encoder mixes."""
    by_token = tokens.sel(measure=["pearson"])
    mean = overall.sel(measure="pearson", drop=True)
    states = by_token.sel(space="states", drop=True)
    mixing = states - by_token.sel(space="input", drop=True)
    says = {
        "coverage": "Pearson correlation with the saliency of encoder outputs",
        "context_mixing": "that less the correlation with the saliency of the input",
    }
    of = mean.sel(space="states", drop=True)
    values = {
        "coverage": of,
        "context_mixing": of - mean.sel(space="input", drop=True),
    }
    found = {}
    for name, rows in (("coverage", states), ("context_mixing", mixing)):
        attrs = {"units": "1", "long_name": says[name], "source": SOURCE}
        found[name] = values[name].assign_attrs(attrs)
        bounds = _interval(rows, "token", weights=weights, **options)
        found[f"{name}_interval"] = bounds.isel(measure=0, drop=True).assign_attrs(
            attrs
        )
    return found


def _without_noise(
    tokens: xr.Dataset, weights: xr.DataArray, options: dict
) -> dict[str, xr.DataArray]:
    """What a perturbation's correlation would be with masks without end.

    Noise of few masks lowers every correlation with it by the same factor, the root of
    its reliability, which two halves show: r = r_observed / sqrt(2 h / (1 + h)), where
    h is the correlation of the halves. NaN where the halves have nothing in common.

    Source:
        Spearman 1904 and 1910; Brown 1910.
    """
    observed = tokens["overall"].sel(attribution="perturbation", measure="pearson")
    pair = xr.concat([observed, tokens["halves"]], "of", coords="minimal")
    pair = pair.drop_vars(["attribution", "measure"], errors="ignore")
    rows = pair.transpose("of", "space", "token").values

    def freed(tokens: np.ndarray) -> np.ndarray:
        """Of each space; and what the encoder mixes, its outputs' less the input's."""
        observed, halves = np.average(rows[:, :, tokens], -1, weights.values[tokens])
        free = observed / _ceiling(halves)
        return np.append(free, np.diff(free))

    every = np.arange(pair.sizes["token"])
    free = freed(every)
    bounds = np.array(
        [
            statistic_interval(lambda own, n=n: freed(own)[n], len(every), **options)
            if np.isfinite(value)
            else (np.nan, np.nan)
            for n, value in enumerate(free)
        ]
    )
    attrs = {"units": "1", "source": "Spearman 1904, 1910; Brown 1910"}
    says = "correlation with the saliency by perturbation, without its noise"
    own = attrs | {"long_name": says}
    bound = {"bound": np.array(["low", "high"], dtype=object)}
    n = pair.sizes["space"]
    mixing = {}
    if len(free) > n:
        says = attrs | {"long_name": "context mixing, without the noise of the masks"}
        mixing = {
            "mixing_without_noise": xr.DataArray(free[n], attrs=says),
            "mixing_without_noise_interval": xr.DataArray(
                bounds[n], bound, "bound", attrs=says
            ),
        }
    return mixing | {
        "ceiling": xr.DataArray(
            _ceiling(np.average(rows[1], -1, weights.values)),
            dims="space",
            attrs=attrs
            | {"long_name": "largest correlation that the number of masks allows"},
        ),
        "without_noise": xr.DataArray(free[:n], dims="space", attrs=own),
        "without_noise_interval": xr.DataArray(
            bounds[:n], bound, ("space", "bound"), attrs=own
        ),
    }


def _ceiling(halves: np.ndarray) -> np.ndarray:
    shared = np.where(halves > 0, halves, np.nan)
    return np.sqrt(2 * shared / (1 + shared))
