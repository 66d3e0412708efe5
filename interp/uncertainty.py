"""How sure a mean is."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from interp.errors import InputError

LEVEL, RESAMPLES, BLOCKS = 0.95, 2000, 8

BOUNDS = np.array(["low", "high"], dtype=object)
"""Along `bound`; objects, since Zarr has no stable type of fixed-length strings."""


def bootstrap_interval(
    values: xr.DataArray,
    dim: str,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    weights: xr.DataArray | None = None,
) -> xr.DataArray:
    """Percentile bootstrap interval of the mean along a dimension.

    All other dimensions share the same resamples. With few values the interval is too
    narrow (of three, it can be no wider than their range); it is never corrected.

    Args:
        values: Measurements; NaN ones are left out.
        dim: The dimension to resample, one entry an independent text or block.
        level: Share of resampled means inside the interval.
        resamples: Number of resamples.
        seed: Of the random numbers.
        weights: Weight of each value in the mean, such as the queries of a block.

    Returns:
        The dimensions of `values`, with `bound` ("low", "high") last instead of `dim`;
        NaN where fewer than two values exist. Same unit as `values`.

    Raises:
        InputError: No such dimension, or a level or number of resamples that means
            nothing.

    Source:
        Efron 1979.
    """
    if dim not in values.dims:
        raise InputError(
            f"Asked for an interval over {dim!r}; the values have the dimensions "
            f"{', '.join(map(str, values.dims)) or 'none'}. Name one of them."
        )
    if not 0 < level < 1 or resamples < 1:
        raise InputError(
            "An interval needs a level between 0 and 1 and at least one resample; got "
            f"level={level} and resamples={resamples}. The usual ones are {LEVEL} and "
            f"{RESAMPLES}."
        )
    present = values.notnull()
    weight = (present * (1.0 if weights is None else weights)).transpose(*values.dims)
    n = values.sizes[dim]
    rng = np.random.default_rng(seed)
    drawn = xr.DataArray(
        rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float),
        dims=("resample", dim),
    )
    total = xr.dot(drawn, (values * weight).fillna(0), dim=dim)
    share = xr.dot(drawn, weight, dim=dim)
    tail = (1 - level) / 2
    several = (weight > 0).sum(dim) > 1
    means = (total / share.where(share > 0)).where(several, 0)
    bounds = means.quantile([tail, 1 - tail], "resample").where(several)
    return (
        bounds.rename(quantile="bound")
        .assign_coords(bound=BOUNDS)
        .transpose(..., "bound")
    )


def block_means(
    rows: xr.DataArray, dim: str = "query", blocks: int = BLOCKS
) -> tuple[xr.DataArray, xr.DataArray]:
    """Means over contiguous stretches of rows, and how many rows each holds.

    For a block bootstrap: neighboring rows are alike, so single rows would give an
    interval that is far too narrow.

    Args:
        rows: Value of every row; NaN where a row does not count.
        dim: The dimension of the rows.
        blocks: Number of stretches, over the rows that count anywhere.

    Returns:
        Means and counts, with `block` first instead of `dim`.
    """
    counted = rows.notnull().any([d for d in rows.dims if d != dim]).values
    stretches = np.array_split(np.flatnonzero(counted), blocks)
    parts = [rows.isel({dim: stretch}) for stretch in stretches if len(stretch)]
    parts = parts or [rows.isel({dim: slice(0)})]
    means = xr.concat([part.mean(dim, dtype="float64") for part in parts], "block")
    counts = xr.concat([part.count(dim) for part in parts], "block")
    return means, counts


def statistic_interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic that is no mean.

    Args:
        statistic: Its value over the measurements with these indices, in 0 to n - 1,
            repetitions included.
        n: Number of measurements.
        level: Share of resampled values inside the interval.
        resamples: Number of resamples.
        seed: Of the random numbers.

    Returns:
        Low and high; NaN with fewer than two measurements.

    Source:
        Efron 1979.
    """
    if n < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(n, size=n)) for _ in range(resamples)]
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)
