"""Preplan and anchor in the tests' own words, from dense maps, one loop a formula.

Maps are `[layer, head, query, key]` of a whole text; the response is what comes from
`first` on.
"""

import numpy as np


def span(p, first, *, without_first=False):
    """Eq. 7 of each head; the first key's weight may be taken out of every row."""
    n = p.shape[-1]
    back = np.arange(n)[:, None] - np.arange(n)
    rows = []
    for t in range(max(first, 1), n):
        weights = p[:, :, t].copy()
        if without_first:
            weights[..., 0] = 0
            weights /= weights.sum(-1, keepdims=True)
        rows.append((weights * back[t]).sum(-1))
    return np.mean(rows, axis=0)


def sides(spans, share):
    """Heads of the shortest and of the longest spans, as masks."""
    order = np.argsort(spans, axis=None)
    n_each = int(share * spans.size)
    local, distant = (np.zeros(spans.size, bool) for _ in range(2))
    local[order[:n_each]] = True
    distant[order[len(order) - n_each :]] = True
    return local.reshape(spans.shape), distant.reshape(spans.shape)


def waad(p, heads, first, clip=10):
    """Def. 4.1 on the mean map of some heads."""
    mean, found = p[heads].mean(0), []
    for t in range(first, len(mean)):
        found.append(sum(mean[t, s] * min(t - s, clip) for s in range(t + 1)))
    return np.array(found)


def fai(p, heads, first, near, far):
    """Def. 4.2 on the mean map of some heads."""
    mean = p[heads].mean(0)
    n, found = len(mean), []
    for s in range(first, n):
        last = n - 1 if far is None else min(n - 1, s + far)
        later = [mean[t, s] for t in range(s + near, last + 1)]
        found.append(np.mean(later) if later else np.nan)
    return np.array(found)


def kurtosis(p, first, near, least, visible):
    """Excess kurtosis over keys of what each gets from queries far behind it."""
    n_layers, n_heads, n, _ = p.shape
    found = np.full((n_layers, n_heads), np.nan)
    for layer in range(n_layers):
        for head in range(n_heads):
            means = []
            for s in range(max(first, 1), n):
                seen = [t for t in range(s + near, n) if visible[layer, t, s]]
                if len(seen) >= least:
                    means.append(np.mean([p[layer, head, t, s] for t in seen]))
            off = np.array(means) - np.mean(means) if means else np.zeros(1)
            if off.any():
                found[layer, head] = (off**4).mean() / (off**2).mean() ** 2 - 3
    return found
