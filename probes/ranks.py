"""Rank correlation of many signals over the same heads, and how sure it is.

Knows arrays over (layer, head), not where they come from.
"""

from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np

SHUFFLES = 10_000
"""Orders of the layers that are drawn; all of them, where there are no more."""

PART = 1 << 22
"""Ranks that are worked on at a time."""


@dataclass(frozen=True)
class RankCorrelation:
    """Of every two signals, each array `[signal, signal]`; NaN where undefined."""

    rho: np.ndarray
    """Spearman's, in [-1, 1]."""
    within: np.ndarray
    """The same for ranks less the mean rank of their layer."""
    low: np.ndarray
    high: np.ndarray
    """Bounds of rho; NaN for a single layer."""
    p: np.ndarray
    """How often layers in another order correlate as far from zero, in (0, 1]."""


def correlate(
    signals: np.ndarray, mask: np.ndarray, *, level: float, resamples: int, seed: int
) -> RankCorrelation:
    """Spearman's rank correlation of every two signals, with layers as clusters.

    Args:
        signals: `[signal, layer, head]`, finite where `mask` is true.
        mask: `[layer, head]`, the heads that count; at least one in each layer.
        level: Share of resampled correlations inside an interval.
        resamples: Number of resamples, each of whole layers.
        seed: Of the resamples, and of the orders of layers.
    """
    count, n_layers, n_heads = signals.shape
    values, there = signals.reshape(count, -1), mask.ravel().astype(np.float64)
    ranks = weighted_ranks(values, there[None])[0].reshape(signals.shape)
    ranks = np.where(mask, ranks - ranks[:, mask].mean(1)[:, None, None], 0)
    of_layer = ranks.sum(2, keepdims=True) / mask.sum(1)[:, None]
    inside = np.where(mask, ranks - of_layer, 0)
    rho = _cosine(ranks.reshape(count, -1))
    bounds = np.full((2, count, count), np.nan)
    if n_layers > 1:
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(n_layers, np.full(n_layers, 1 / n_layers), resamples)
        weights = np.repeat(drawn.astype(np.float64), n_heads, axis=1) * there
        parts = np.array_split(weights, -(-weights.size * count // PART))
        resampled = np.concatenate([_resampled(values, part) for part in parts])
        usable = np.isfinite(resampled).any(0)
        tails = (1 - level) / 2, (1 + level) / 2
        bounds = np.nanquantile(np.where(usable, resampled, 0), tails, axis=0)
        bounds = np.where(usable & np.isfinite(rho), bounds, np.nan)
    return RankCorrelation(
        rho=rho,
        within=_cosine(inside.reshape(count, -1)),
        low=bounds[0],
        high=bounds[1],
        p=np.where(np.isfinite(rho), _chance(ranks, seed), np.nan),
    )


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks in samples that hold a value several times or not; equals share the mean.

    Sorting once does for all samples: a rank counts the weights below.

    Args:
        values: `[signal, value]`.
        weights: `[draw, value]`, how often each value is in the sample.

    Returns:
        `[draw, signal, value]`, from 1 on; without meaning where the weight is 0.
    """
    ranks = np.empty((len(weights), *values.shape))
    for row, signal in enumerate(values):
        _, place = np.unique(signal, return_inverse=True)
        order = np.argsort(place, kind="stable")
        starts = np.flatnonzero(np.diff(place[order], prepend=-1))
        n_equal = np.add.reduceat(weights[:, order], starts, axis=1)
        ranks[:, row] = (n_equal.cumsum(1) - (n_equal - 1) / 2)[:, place]
    return ranks


def _resampled(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank correlations `[draw, signal, signal]` of weighted samples."""
    ranks = weighted_ranks(values, weights)
    share = (weights / weights.sum(1, keepdims=True))[:, None]
    centered = ranks - (ranks * share).sum(2, keepdims=True)
    return _cosine(centered * np.sqrt(share))


def _cosine(rows: np.ndarray) -> np.ndarray:
    """Cosine of every two rows of `[..., signal, value]`; NaN with a row of zeros."""
    products = rows @ np.swapaxes(rows, -1, -2)
    size = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    size = np.where(size > 1e-6, size, np.nan)  # Ranks differ by a half at least.
    return np.clip(products / (size[..., :, None] * size[..., None, :]), -1, 1)


def _chance(ranks: np.ndarray, seed: int) -> np.ndarray:
    """How often whole layers in another order correlate as far from zero.

    Args:
        ranks: `[signal, layer, head]`, less their mean; 0 where a head does not count.
        seed: Of the orders, where there are too many to try all.

    Returns:
        Two-sided p `[signal, signal]`.
    """
    n_layers = ranks.shape[1]
    every = np.arange(n_layers)
    if n_layers < 10 and factorial(n_layers) <= SHUFFLES:
        orders, extra = np.array(list(permutations(every))), 0
    else:
        rng = np.random.default_rng(seed)
        orders = rng.permuted(np.tile(every, (SHUFFLES, 1)), axis=1)
        extra = 1  # The observed order counts among the drawn ones.
    # Layer by layer: a whole layer that moves takes its sum of products along.
    products = np.einsum("alh,bmh->ablm", ranks, ranks)
    sums = np.zeros((*products.shape[:2], len(orders)))
    for layer in every:
        sums += products[:, :, layer, orders[:, layer]]
    observed = abs(products[:, :, every, every].sum(-1))
    slack = 1e-9 * max(float(observed.max()), 1.0)
    as_far = (abs(sums) >= (observed - slack)[..., None]).sum(-1)
    return (as_far + extra) / (len(orders) + extra)
