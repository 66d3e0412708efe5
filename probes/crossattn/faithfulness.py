"""Deletion and insertion: what the model still says when salient parts go or come."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.probes.crossattn.forced import Fill, Forced
from interp.probes.crossattn.parts import Arrays, Parts
from interp.uncertainty import bootstrap_interval

DIRECTIONS = ("deletion", "insertion")

LEVELS = (0.05, 0.15, 0.35, 0.65)
"""Shares of the positions at which the model is run, beside none and all."""

DRAWS = 2
"""Random orders beside the explanations."""

Progress = Callable[[int, int], None]


def curves(
    forced: Forced,
    explanations: Mapping[str, np.ndarray],
    *,
    levels: Sequence[float] = LEVELS,
    fill: Fill = "silence",
    seed: int = 0,
    parts: Parts | None = None,
    progress: Progress = lambda done, total: None,
) -> xr.Dataset:
    """Probability of the output tokens while positions are taken away or given back.

    Each token by its own map: encoder outputs become their mean, and the decoder is
    given those of the real positions only. All tokens together by the mean of their
    maps, each less its mean by its deviation: the input itself becomes the baseline.

    Args:
        forced: The utterance.
        explanations: Maps `[token, position]` by name; NaN is never taken away.
        levels: Shares of the positions.
        fill: What the input becomes.
        seed: Of the random orders.
        parts: Where the curves of each explanation are kept, and read from.
        progress: Told of every run.

    Returns:
        `curve` (direction, explanation, token, fraction), `curve_pooled` (direction,
        explanation, fraction): probability; `auc` and `auc_pooled`: its mean over the
        fractions, by trapezoids. `random` is the mean of several orders.

    Source:
        Petsiuk et al. 2018; probabilities of forced tokens stand for the word error
        rate of Papi et al. 2025.
    """
    parts = parts or Parts(None)
    rng = np.random.default_rng(seed)
    shape = next(iter(explanations.values())).shape
    draws = {f"random {n}": rng.random(shape) for n in range(DRAWS)}
    every = {**explanations, **draws}
    fraction = np.array([0.0, *levels, 1.0])
    space = "input" if forced.is_decoder else "states"
    n_runs = 2 * len(DIRECTIONS) * len(every) * len(levels)
    done = -4  # the ends of the curves, which all of them share

    def step() -> None:
        nonlocal done
        done += 1
        progress(max(done, 0), n_runs)

    without = forced.own_scores(forced.baseline(space, fill)[:, : forced.n_positions])
    heard, scores = forced.of("input")
    silence = forced.baseline("input", fill)
    n_tokens = shape[0]

    def by_token(chosen: np.ndarray) -> np.ndarray:
        """`[token]`, where each token's own positions are the baseline's."""
        step()
        return _probability(without(torch.from_numpy(chosen).to(heard.device)))

    def together(chosen: np.ndarray) -> np.ndarray:
        """The mean over tokens, where the same positions of the input are silent."""
        step()
        rows = torch.where(forced.cells(chosen[0]), silence, heard)
        return _probability(scores(rows)).mean(-1)

    def of(maps: np.ndarray) -> Arrays:
        orders = [_order(row) for row in maps], [_order(_standard(maps))]
        return {
            "own": _curve(by_token, of_token, orders[0], levels, forced.n_positions),
            "pooled": _curve(together, of_all, orders[1], levels, forced.n_positions),
        }

    own, pooled = {}, {}
    with torch.no_grad():
        ends = [np.full((n_tokens, forced.n_positions), end) for end in (False, True)]
        of_token = [by_token(end) for end in ends]
        of_all = [together(end) for end in ends]
        for number, (name, maps) in enumerate(every.items()):
            done = number * n_runs // len(every)
            made = parts.get(_key(maps, levels, fill), lambda maps=maps: of(maps))
            own[name], pooled[name] = made["own"], made["pooled"][:, 0]
    names = [*explanations, "random"]
    for found in (own, pooled):
        found["random"] = np.mean([found.pop(name) for name in draws], axis=0)
    attrs = {"units": "probability"}
    found = xr.Dataset(
        {
            "curve": (
                ("explanation", "direction", "token", "fraction"),
                np.stack([own[name] for name in names]),
                attrs | {"long_name": "probability of a token, by its own map"},
            ),
            "curve_pooled": (
                ("explanation", "direction", "fraction"),
                np.stack([pooled[name] for name in names]),
                attrs | {"long_name": "mean probability of tokens, by the mean map"},
            ),
        },
        {
            "explanation": np.array(names, dtype=object),
            "direction": np.array(DIRECTIONS, dtype=object),
            "token": np.arange(shape[0]),
            "fraction": fraction,
        },
    ).transpose("direction", "explanation", ...)
    for name in ("curve", "curve_pooled"):
        area = found[name].integrate("fraction")
        label = f"area under the curve, {found[name].attrs['long_name']}"
        found[name.replace("curve", "auc")] = area.assign_attrs(
            units="probability", long_name=label, source="Petsiuk et al. 2018"
        )
    return found


def areas(together: Sequence[xr.Dataset], seed: int) -> xr.Dataset:
    """Areas under the curves over all tokens, and what they gain on random orders."""
    auc = xr.concat(
        [each["auc"].drop_vars("token") for each in together], "token", join="outer"
    )
    sign = xr.where(auc["direction"] == "deletion", -1.0, 1.0)
    gain = sign * (auc - auc.sel(explanation="random", drop=True))
    found = {}
    for name, rows in (("auc", auc), ("auc_gain", gain)):
        says = "area under the curve of a token"
        says += ", better than random" if name == "auc_gain" else ""
        attrs = {"units": "probability", "long_name": says}
        found[name] = rows.mean("token").assign_attrs(attrs)
        bounds = bootstrap_interval(rows, "token", seed=seed)
        found[f"{name}_interval"] = bounds.assign_attrs(attrs)
    return xr.Dataset(found)


def _key(maps: np.ndarray, levels: Sequence[float], fill: Fill) -> str:
    """Name of an explanation's curves, of all that they depend on."""
    digest = hashlib.sha256(f"{maps.shape} {maps.dtype} {list(levels)} {fill}".encode())
    digest.update(np.ascontiguousarray(maps).tobytes())
    return f"curves-{digest.hexdigest()[:24]}"


def _order(row: np.ndarray) -> np.ndarray:
    """Positions that have a value, the largest first."""
    return np.argsort(-row, kind="stable")[: np.isfinite(row).sum()]


def _standard(maps: np.ndarray) -> np.ndarray:
    """Mean over tokens `[position]` of maps less their mean by their deviation."""
    spread = np.nanstd(maps, axis=1, keepdims=True)
    scaled = (maps - np.nanmean(maps, axis=1, keepdims=True)) / np.where(
        spread > 0, spread, 1
    )
    known = np.isfinite(scaled)
    total = np.where(known, scaled, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _probability(scores: Tensor) -> np.ndarray:
    return scores.double().exp().cpu().numpy()


def _curve(
    run: Callable[[np.ndarray], np.ndarray],
    ends: Sequence[np.ndarray],
    order: Sequence[np.ndarray],
    levels: Sequence[float],
    n_positions: int,
) -> np.ndarray:
    """`[direction, row, fraction]`, of each row's positions in its own order.

    Args:
        run: What is left of the probability where `[row, position]` are taken away.
        ends: The same where none and where all are.
        order: Of each row, its positions, the most salient first.
        levels: Shares between none and all.
        n_positions: Positions in all.
    """
    curves: list[list[np.ndarray]] = [[ends[0]], [ends[1]]]
    for share in levels:
        top = np.zeros((len(order), n_positions), bool)
        for row, own in enumerate(order):
            top[row, own[: round(share * len(own))]] = True
        for curve, gone in zip(curves, (top, ~top), strict=True):
            curve.append(np.atleast_1d(run(gone)))
    curves[0].append(ends[1])
    curves[1].append(ends[0])
    return np.stack([np.stack(np.broadcast_arrays(*c), -1) for c in curves])
