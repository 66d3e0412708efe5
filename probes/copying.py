"""The criterion of copying: a head looks at the very token that comes next."""

from collections.abc import Sequence

import numpy as np
import xarray as xr


def copied_keys(
    top_key: xr.DataArray,
    ids: Sequence[int],
    span: tuple[int, int] | None = None,
) -> xr.DataArray:
    """The key that each row copies.

    A row copies if one of its most attended keys holds the token that follows the
    row's own: the one that was generated, or that stands there.

    Args:
        top_key: (layer, head, query, rank), keys of the largest weights, the largest
            first, -1 for none; `query` says where the rows' tokens stand.
        ids: All tokens, up to the one that follows the last row.
        span: Begin and end of the keys that count; None for all.

    Returns:
        (layer, head, query): the copied key, of several the most attended; -1 for none.

    Source:
        Retrieval heads (arXiv:2404.15574), as the released code counts: once a row.
    """
    tokens = np.asarray(ids)
    follows = xr.DataArray(tokens[top_key["query"].values + 1], dims="query")
    held = xr.apply_ufunc(lambda keys: tokens[keys.clip(0)], top_key)
    begin, end = span or (0, len(tokens))
    copies = (held == follows) & (top_key >= begin) & (top_key < end)
    first = top_key.isel(rank=copies.argmax("rank")).drop_vars("rank", errors="ignore")
    return first.where(copies.any("rank"), -1)


def copied_share(
    copied: xr.DataArray, span: tuple[int, int], *, released: bool = False
) -> xr.DataArray:
    """How much of a span each head copied.

    Args:
        copied: (layer, head, query) as `copied_keys` gives it.
        span: Begin and end of the needle.
        released: Count a key each time that it is copied, as the released code does;
            then a needle that is repeated gives more than 1.

    Returns:
        (layer, head): distinct copied keys of the span / its keys, in [0, 1].
    """
    begin, end = span
    if released:
        inside = (copied >= begin) & (copied < end)
        return inside.sum("query") / (end - begin)
    places = xr.DataArray(np.arange(begin, end), dims="key")
    return (copied == places).any("query").mean("key")
