"""When each word is said, read from cross-attention; and which heads know it best."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.ndimage import median_filter

CHOSEN = 6
"""Heads that are averaged, the best by their peaks."""

WIDTH = 7
"""Positions of the median filter."""


def ranked_heads(peaks: np.ndarray, chosen: int = CHOSEN) -> xr.Dataset:
    """Heads by how near their peaks are to those of saliency.

    Args:
        peaks: `[layer, head]`, mean distance in milliseconds.
        chosen: How many are taken.

    Returns:
        `head_error`, `rank` (from 1 on) and `chosen` (0 or 1), each (layer, head).
    """
    rank = np.empty(peaks.size, int)
    rank[np.argsort(peaks, axis=None, kind="stable")] = np.arange(1, peaks.size + 1)
    rank = rank.reshape(peaks.shape)
    dims = "layer", "head"
    says = "mean distance between the peaks of attention and of saliency"
    return xr.Dataset(
        {
            "head_error": (dims, peaks, {"units": "ms", "long_name": says}),
            "rank": (dims, rank, {"units": "1", "long_name": "rank by that distance"}),
            "chosen": (
                dims,
                (rank <= chosen).astype(int),
                {
                    "units": "1",
                    "long_name": "whether it tells word times",
                },
            ),
        },
        {dim: np.arange(size) for dim, size in zip(dims, peaks.shape, strict=True)},
    )


def token_times(attention: np.ndarray, seconds: float) -> np.ndarray:
    """Begin and end of every token, by dynamic time warping.

    Args:
        attention: `[head, token, position]` of the chosen heads.
        seconds: Length of a position.

    Returns:
        `[token, 2]`, in seconds; a token ends where the next begins.

    Source:
        OpenAI's whisper, timing.py: weights less their mean over the tokens by their
        deviation, a median filter of 7 positions, the mean over heads.
    """
    spread = attention.std(1, keepdims=True)
    scaled = (attention - attention.mean(1, keepdims=True)) / np.where(
        spread > 0, spread, 1
    )
    smooth = median_filter(scaled, size=(1, 1, WIDTH), mode="reflect")
    tokens, positions = warping_path(-smooth.mean(0))
    begins = positions[np.flatnonzero(np.diff(tokens, prepend=-1))]
    ends = np.append(begins[1:], attention.shape[2])
    return np.stack([begins, ends], 1) * seconds


def warping_path(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest monotonic path through `[token, position]`, from corner to corner.

    Returns:
        Tokens and positions of its steps.
    """
    n_tokens, n = cost.shape
    total = np.full((n_tokens + 1, n + 1), np.inf)
    total[0, 0] = 0
    for i in range(n_tokens):
        for j in range(n):
            least = min(total[i, j], total[i, j + 1], total[i + 1, j])
            total[i + 1, j + 1] = cost[i, j] + least
    i, j = n_tokens, n
    path = []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        came = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        best = int(np.argmin(came))
        i, j = i - (best != 2), j - (best != 1)
    steps = np.array(path[::-1])
    return steps[:, 0], steps[:, 1]


def words_of(tokens: Sequence[str], times: np.ndarray) -> xr.Dataset:
    """Tokens joined to words, with their times.

    A token that begins with a space begins a word; punctuation stays with the word
    before it. Where no token begins with a space, each is a word.

    Args:
        tokens: As strings.
        times: `[token, 2]`, begin and end in seconds.

    Returns:
        Over `word`: `text`, `begin`, `end` (s), `first_token`, `last_token`.
    """
    spaced = any(token.startswith(" ") for token in tokens[1:])
    starts = [
        n for n, token in enumerate(tokens) if n == 0 or not spaced or token[:1] == " "
    ]
    lasts = [*(start - 1 for start in starts[1:]), len(tokens) - 1]
    texts = [
        "".join(tokens[first : last + 1]).strip()
        for first, last in zip(starts, lasts, strict=True)
    ]
    seconds = {"units": "s"}
    return xr.Dataset(
        {
            "text": ("word", np.array(texts, dtype=object), {"long_name": "word"}),
            "begin": ("word", times[starts, 0], seconds | {"long_name": "begin"}),
            "end": ("word", times[lasts, 1], seconds | {"long_name": "end"}),
            "first_token": ("word", starts, {"long_name": "first token"}),
            "last_token": ("word", lasts, {"long_name": "last token"}),
        }
    )
