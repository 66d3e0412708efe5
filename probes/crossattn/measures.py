"""How alike two rows over the same positions are: of attention, and of saliency."""

import numpy as np
from scipy.special import rel_entr
from scipy.stats import rankdata

MEASURES = ("pearson", "spearman", "topk", "js_distance", "peak")

TOP = 0.1
"""Share of the positions whose overlap is `topk`."""


def alike(attention: np.ndarray, saliency: np.ndarray, top: float = TOP) -> np.ndarray:
    """Every measure of rows of attention against rows of saliency.

    Rows are compared where the saliency is known. Correlations are of rows less their
    mean by their deviation, so that the mean over tokens is the correlation of whole
    maps that were normalized row by row; a row that is constant correlates with
    nothing (0), as in the paper.

    Args:
        attention: `[..., token, position]`, not negative.
        saliency: `[token, position]`, not negative; NaN where there is none.
        top: Share of positions that count as the top.

    Returns:
        `[measure, ..., token]` in the order of `MEASURES`: Pearson's and Spearman's
        correlation, overlap of the top positions (fraction), Jensen-Shannon distance
        (0 to 1) and distance of the peaks in positions. NaN for rows without any
        saliency.

    Source:
        Papi et al. 2025, arXiv:2509.18010, section 3.
    """
    found = np.full((len(MEASURES), *attention.shape[:-1]), np.nan)
    for token, row in enumerate(saliency):
        seen = np.isfinite(row)
        if seen.sum() < 2:
            continue
        found[..., token] = _row(attention[..., token, seen], row[seen], top)
    return found


def _row(attention: np.ndarray, saliency: np.ndarray, top: float) -> np.ndarray:
    n = len(saliency)
    n_top = max(round(top * n), 1)
    best = np.argsort(-saliency, kind="stable")[:n_top]
    is_top = np.isin(np.argsort(-attention, axis=-1, kind="stable")[..., :n_top], best)
    shares = [_share(attention), np.broadcast_to(_share(saliency), attention.shape)]
    return np.stack(
        [
            correlation(attention, saliency),
            correlation(rankdata(attention, axis=-1), rankdata(saliency)),
            is_top.mean(-1),
            _distance(*shares),
            abs(attention.argmax(-1) - saliency.argmax()).astype(float),
        ]
    )


def correlation(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Pearson's r of each row of `[..., position]` with one; 0 for a constant one."""
    rows = rows.astype(np.float64) - rows.mean(-1, keepdims=True, dtype=np.float64)
    row = row - row.mean(dtype=np.float64)
    size = np.sqrt((rows**2).sum(-1) * (row**2).sum())
    # The square root of the sum of squares is rounding where a row is constant.
    return np.divide(rows @ row, size, out=np.zeros(size.shape), where=size > 1e-300)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance of shares `[..., position]`, in 0 to 1."""
    middle = (a + b) / 2
    bits = (rel_entr(a, middle) + rel_entr(b, middle)).sum(-1) / (2 * np.log(2))
    return np.asarray(np.sqrt(bits.clip(0, 1)))


def _share(rows: np.ndarray) -> np.ndarray:
    """Rows `[..., position]` that sum to 1; equal shares where all are 0."""
    rows = rows.astype(np.float64)
    total = rows.sum(-1, keepdims=True)
    equal = np.full_like(rows, 1 / rows.shape[-1])
    return np.divide(rows, total, out=equal, where=total > 0)


def rotated(
    attention: np.ndarray, saliency: np.ndarray, top: float = TOP
) -> np.ndarray:
    """Every measure of a row of attention at every rotation against the saliency.

    Args:
        attention: `[token, position]`.
        saliency: `[token, position]`; NaN where there is none.
        top: As in `alike`.

    Returns:
        `[measure, token, shift]`; NaN beyond a row's length. The first shift is none.
    """
    n_tokens, n = saliency.shape
    found = np.full((len(MEASURES), n_tokens, n), np.nan)
    for token, row in enumerate(saliency):
        seen = np.flatnonzero(np.isfinite(row))
        if len(seen) < 2:
            continue
        every = np.arange(len(seen))
        own = attention[token, seen][(every - every[:, None]) % len(seen)]
        found[:, token, : len(seen)] = _row(own, row[seen], top)
    return found
