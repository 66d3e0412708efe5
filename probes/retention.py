"""Which keys a cache would keep by a score, and how much later attention they hold.

The judge is attention that no score has seen: cut a text in two, score the keys of the
first part from that part alone, and look at what the queries of the second part give
them in a trace of the whole text.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from interp.errors import InputError
from interp.probes.detector import site_of, statistic
from interp.probes.visibility import length, visible_queries

BUDGETS = (0.05, 0.1, 0.2, 0.5)
"""Shares of the keys that are kept."""

Count = int | xr.DataArray
"""Of keys: one number, or one for each sample."""


def kept_keys(
    scores: xr.DataArray, budget: Count, *, first: Count = 0, recent: Count = 0
) -> xr.DataArray:
    """The keys that stay where there is not room for all.

    Args:
        scores: Over `key`, the higher the better; a key without a score goes before
            any that has one, and of equal scores the later key goes.
        budget: Keys that stay in all; a text that is no longer stays whole.
        first: Keys at the beginning that stay whatever their score.
        recent: Keys at the end that do.

    Returns:
        The dimensions of `scores`, True for keys that stay.

    Raises:
        InputError: The budget has no room for the keys that stay in any case.
    """
    if np.any(np.less(budget, first + recent)):
        raise InputError(
            f"A budget of {_said(budget)} keys was given, of which the first "
            f"{_said(first)} and the last {_said(recent)} stay in any case. Give it "
            "room for those."
        )
    key, n_keys = scores["key"], _n_keys(scores)
    is_real = key < n_keys
    always = is_real & ((key < first) | (key >= n_keys - recent))
    rank = xr.apply_ufunc(
        _rank,
        scores.fillna(-np.inf).where(is_real & ~always),
        input_core_dims=[["key"]],
        output_core_dims=[["key"]],
    )
    kept = always | (is_real & (rank < budget - always.sum("key")))
    kept = kept.transpose(*scores.dims).rename("kept").drop_attrs(deep=False)
    return kept.assign_attrs(long_name="keys that stay")


def heavy_hitters(
    scores: xr.DataArray, *, heavy: float = 0.1, recent: float = 0.1
) -> xr.DataArray:
    """The keys that H2O keeps of a prompt.

    Args:
        scores: Accumulated attention.
        heavy: Share of the prompt that stays for its score, of all but the recent keys.
        recent: Share of the prompt that stays because it is the latest.

    Returns:
        As `kept_keys`.

    Raises:
        InputError: A share below 0, or shares of more than all keys.

    Source:
        arXiv:2306.14048 and its code.
    """
    if min(heavy, recent) < 0 or heavy + recent > 1:
        raise InputError(
            "Heavy hitters and recent keys are shares of the prompt; got "
            f"heavy={heavy} and recent={recent}. Give shares of 1 together at most."
        )
    n_heavy, n_recent = (_part(share, scores) for share in (heavy, recent))
    return kept_keys(scores, n_heavy + n_recent, recent=n_recent)


def later_attention(trace: xr.DataTree, site: str | None = None) -> xr.DataArray:
    """What the keys of a text's first part receive from the queries of the second.

    Args:
        trace: Of the whole text, with `received_late`; its `last` queries are the
            second part.
        site: Attention site; None takes `self`, else `encoder`.

    Returns:
        (layer, head, key) over the keys of the first part: attention of a later query,
        as a mean over all of them; 0 where none can see the key.

    Raises:
        NotCapturedError: The trace lacks the statistic.
        InputError: The text has no first part.
    """
    late = statistic(trace, "received_late", site)
    node, last = site_of(trace, site), late.attrs["last"]
    n_first = length(node) - last
    if n_first.max() < 1:
        raise InputError(
            f"The last {last} queries were to judge the keys before them; the text has "
            f"{late.sizes['key']} tokens. Trace a longer one, or capture fewer queries."
        )
    share = late.fillna(0) * visible_queries(node, last) / last
    is_first = (late["key"] < n_first) & late.notnull().any("key")
    later = share.where(is_first).isel(key=slice(int(n_first.max())))
    if "key_length" in later.coords:
        later = later.assign_coords(key_length=n_first.clip(min=0))
    return later.transpose(*late.dims).assign_attrs(
        units="fraction", long_name="attention of a later query", last=last
    )


def recall_of_mass(
    scores: xr.Dataset,
    later: xr.DataArray,
    budgets: Sequence[float] = BUDGETS,
    *,
    first: int = 0,
    recent: int = 0,
    seeds: Sequence[int] = (0, 1, 2),
) -> xr.Dataset:
    """Share of later attention on the first part that the kept keys hold.

    Args:
        scores: By name; each over `key`, from the first part of the text alone.
        later: As `later_attention` gives it.
        budgets: Shares of the keys that stay.
        first: Keys at the beginning that stay under every score.
        recent: Keys at the end that do.
        seeds: Of the random scores, the control.

    Returns:
        For each score a share over (budget, layer, head); `random` over (seed, budget,
        layer, head), and `best`, what no choice of keys could exceed.

    Raises:
        InputError: Scores of another number of keys, or a budget without room.
    """
    _require_first_part(scores, later)
    total = later.sum("key")

    def held(values: xr.DataArray) -> xr.DataArray:
        shares = []
        for budget in budgets:
            n_kept = _part(budget, later)
            kept = kept_keys(values, n_kept, first=first, recent=recent)
            shares.append(later.where(kept).sum("key") / total)
        share = xr.concat(shares, "budget").assign_coords(budget=list(budgets))
        return share.assign_attrs(
            units="fraction", long_name="later attention on the kept keys"
        )

    found = {str(name): held(values) for name, values in scores.items()}
    drawn = [
        held(later.copy(data=np.random.default_rng(seed).random(later.shape)))
        for seed in seeds
    ]
    if drawn:
        found["random"] = xr.concat(drawn, "seed").assign_coords(seed=list(seeds))
    found["best"] = held(later)
    return xr.Dataset(found).assign_attrs(first=first, recent=recent)


def rank_correlation(scores: xr.Dataset, later: xr.DataArray) -> xr.Dataset:
    """Rank correlation of each score with later attention, over keys that all score.

    Args:
        scores: By name; each over `key`, from the first part of the text alone.
        later: As `later_attention` gives it.

    Returns:
        Spearman's coefficient of each score over (layer, head), in [-1, 1]; NaN where
        one side is the same for all keys.

    Raises:
        InputError: Scores of another number of keys.
    """
    _require_first_part(scores, later)
    counted = scores.to_dataarray().notnull().all("variable") & later.notnull()
    ranks = [_ranks(each.where(counted)) for each in (*scores.values(), later)]
    found = {
        str(name): xr.corr(own, ranks[-1], "key").assign_attrs(
            units="correlation", long_name="rank correlation with later attention"
        )
        for name, own in zip(scores, ranks, strict=False)
    }
    return xr.Dataset(found)


def _require_first_part(scores: xr.Dataset, later: xr.DataArray) -> None:
    n_keys = later.sizes["key"]
    for name, values in scores.items():
        if values.sizes.get("key") != n_keys:
            raise InputError(
                f"{name} scores {values.sizes.get('key')} keys, and later attention is "
                f"on {n_keys}. Score the first part of the text alone, so that no "
                "score has seen the queries that judge it."
            )


def _ranks(values: xr.DataArray) -> xr.DataArray:
    """Ranks along the keys; equal values share the mean of theirs."""
    return xr.apply_ufunc(
        rankdata,
        values,
        kwargs={"axis": -1, "nan_policy": "omit"},
        input_core_dims=[["key"]],
        output_core_dims=[["key"]],
    )


def _n_keys(scores: xr.DataArray) -> xr.DataArray:
    """Keys of the text, of each sample where there are samples."""
    return xr.DataArray(scores.coords.get("key_length", scores.sizes["key"]))


def _part(share: float, scores: xr.DataArray) -> xr.DataArray:
    """A share of the keys in whole keys, rounded down."""
    return (share * _n_keys(scores)).astype(int)


def _said(count: Count) -> int:
    """A count, or the least of several."""
    return int(np.min(count))


def _rank(values: np.ndarray) -> np.ndarray:
    """Place of each value along the last axis, the largest first, NaN last."""
    order = np.argsort(-values, axis=-1, kind="stable")
    return np.argsort(order, axis=-1)
