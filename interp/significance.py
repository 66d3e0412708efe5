"""How likely chance alone would have done the same."""

import numpy as np
import xarray as xr

EXACT = 13
"""Pairs up to which all sign patterns are counted; beyond, `FLIPS` are drawn."""

FLIPS = 10_000


def sign_flip_p(changes: xr.DataArray, dim: str, *, seed: int = 0) -> xr.DataArray:
    """How often a mean is as far from zero if the sign of each entry were chance.

    Args:
        changes: Paired differences; NaN ones are left out.
        dim: The dimension of the pairs; all other dimensions share the same signs.
        seed: Of the signs, where there are too many to try all.

    Returns:
        Two-sided p in (0, 1] over the other dimensions; NaN without any entry.

    Source:
        Fisher, The Design of Experiments (1935), section 21; the observed signs count
        among the drawn ones, after Phipson and Smyth 2010.
    """
    present = changes.fillna(0).transpose(..., dim)
    flat = present.values.reshape(-1, present.sizes[dim])
    n = flat.shape[1]
    if n <= EXACT:
        patterns = np.arange(2**n)[:, None] >> np.arange(n) & 1
        signs = 1.0 - 2.0 * patterns
        extra = 0
    else:
        rng = np.random.default_rng(seed)
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(FLIPS, n))
        extra = 1
    observed = abs(flat.sum(1))
    slack = 1e-12 * abs(flat).sum(1)
    as_far = (abs(signs @ flat.T) >= observed - slack).sum(0)
    p = (as_far + extra) / (len(signs) + extra)
    shape = [size for name, size in present.sizes.items() if name != dim]
    result = present.isel({dim: 0}, drop=True).copy(data=p.reshape(shape))
    return result.where(changes.notnull().any(dim)).drop_attrs()


def holm(p: xr.DataArray) -> xr.DataArray:
    """Adjusted p-values of tests made together; NaN is no test and stays NaN.

    Source:
        Holm 1979.
    """
    flat = p.values.astype(np.float64).ravel()
    order = np.argsort(flat)[: np.count_nonzero(~np.isnan(flat))]
    steps = flat[order] * np.arange(len(order), 0, -1)
    adjusted = np.full_like(flat, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return p.copy(data=adjusted.reshape(p.shape))
