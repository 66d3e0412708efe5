"""Which pairs of query and key exist, as counts, from a trace's coordinates.

A sliding window of W lets a query see itself and the W - 1 keys before it.
"""

import xarray as xr

CAUSAL_SITES = ("self",)
"""Sites where a query sees no later key; the others see the whole sequence."""


def length(node: xr.DataTree) -> xr.DataArray:
    """Number of queries of the site, of each sample where there are samples."""
    if "length" in node.coords:
        return node.coords["length"]
    return xr.DataArray(node.sizes["query"])


def window(node: xr.DataTree) -> xr.DataArray:
    """Keys that a layer's window spans; infinite where the layer has none."""
    if "window" in node.coords:
        return node.coords["window"].fillna(float("inf"))
    return xr.DataArray(float("inf"))


def sees_first_key(node: xr.DataTree) -> xr.DataArray:
    """Whether a query, other than the first, can see key 0."""
    query = node.coords["query"]
    return (query >= 1) & (query < window(node))


def visible_queries(node: xr.DataTree) -> xr.DataArray:
    """Number of queries that can see each key."""
    key, span = node.coords["key"], window(node)
    after = (length(node) - key).clip(min=0)
    if node.name in CAUSAL_SITES:
        return after.clip(max=span)
    before = key.clip(max=span - 1)
    return (after.clip(max=span) + before).where(after > 0, 0)


def visible_keys(node: xr.DataTree) -> xr.DataArray:
    """Number of keys that each query can see."""
    query, span = node.coords["query"], window(node)
    if node.name in CAUSAL_SITES:
        return (query + 1).clip(max=span)
    before = query.clip(max=span - 1)
    return (length(node) - query).clip(min=0, max=span) + before
