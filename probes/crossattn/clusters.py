"""Cells of an input that are masked together: superpixels, or stretches of time."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

SEGMENTS = (200, 250, 300)
"""Superpixels of a spectrogram of `REFERENCE` frames, at three granularities.

A tenth of those of SPES, which takes 20,000 masks: the fewer clusters, the fewer masks
show what each does.
"""

REFERENCE, MOST = 500, 750
"""Frames that `SEGMENTS` are counted for, and beyond which they grow no more."""

COMPACTNESS, BLUR, ROUNDS = 0.1, 1.0, 10


def superpixels(
    features: np.ndarray, segments: Sequence[int] = SEGMENTS
) -> list[np.ndarray]:
    """Clusters of a spectrogram that lie together and sound alike (SLIC).

    k-means over value and place, begun on a grid, in which a cell only chooses among
    the clusters that began around it. Stray cells are not joined to their neighbors.

    Args:
        features: `[frame, channel]`.
        segments: Clusters per `REFERENCE` frames, one number a granularity.

    Returns:
        `[frame, channel]` of cluster numbers from 0 on, for each granularity.

    Source:
        Achanta et al. 2012; with the settings of SPES (Fucci et al. 2024): compactness
        0.1, blur of one cell, values scaled to 0..1; theirs are 2,000, 2,500 and 3,000
        segments.
    """
    span = np.ptp(features) or 1.0
    value = gaussian_filter((features - features.min()) / span, BLUR)
    count = [each * min(len(features), MOST) / REFERENCE for each in segments]
    return [_slic(value, int(np.clip(each, 1, features.size))) for each in count]


def stretches(n_cells: int, lengths: Sequence[int]) -> list[np.ndarray]:
    """Runs of neighbors `[cell]`, of each of the lengths."""
    return [np.arange(n_cells) // max(length, 1) for length in lengths]


def _slic(value: np.ndarray, count: int) -> np.ndarray:
    step = max((value.size / count) ** 0.5, 1.0)
    grid = tuple(max(round(size / step), 1) for size in value.shape)
    place = np.indices(value.shape)
    home = [
        at * cells // size
        for at, cells, size in zip(place, grid, value.shape, strict=True)
    ]
    near = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    options = np.stack(
        [
            np.clip(home[0] + i, 0, grid[0] - 1) * grid[1]
            + np.clip(home[1] + j, 0, grid[1] - 1)
            for i, j in near
        ]
    )
    points = np.stack([value, *(COMPACTNESS / step * place)]).astype(np.float64)
    labels = home[0] * grid[1] + home[1]
    size = grid[0] * grid[1]
    for _ in range(ROUNDS):
        held = np.maximum(np.bincount(labels.ravel(), minlength=size), 1)
        centers = np.stack(
            [np.bincount(labels.ravel(), p.ravel(), size) / held for p in points]
        )
        apart = ((points[:, None] - centers[:, options]) ** 2).sum(0)
        chosen = np.take_along_axis(options, apart.argmin(0)[None], 0)[0]
        if np.array_equal(chosen, labels):
            break
        labels = chosen
    return np.unique(labels, return_inverse=True)[1].reshape(value.shape)
