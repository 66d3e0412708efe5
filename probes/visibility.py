"""Which pairs of query and key exist, as counts, from a trace's coordinates.

A window of w lets a query see itself and the w - 1 keys before it, and as many after it
where the site is not causal. A chunk of c ends what a query sees at its multiples.
"""

import xarray as xr

from interp.errors import NotCapturedError

CAUSAL_SITES = ("self",)
"""Sites where a query sees no later key; at the others it sees keys on both sides."""


def require_causal(node: xr.DataTree, what: str, why: str) -> None:
    """Refuse a measure that means nothing where queries look ahead.

    Raises:
        NotCapturedError: They do.
    """
    if node.name not in CAUSAL_SITES:
        raise NotCapturedError(
            f"{what} was asked for at the site {node.name}, where queries also look "
            f"ahead: {why}. Choose a site among {', '.join(CAUSAL_SITES)}."
        )


def length(node: xr.DataTree) -> xr.DataArray:
    """Number of queries of the site, of each sample where there are samples.

    Raises:
        NotCapturedError: Only statistics over keys were captured, and of a site whose
            queries are other tokens.
    """
    if "query_length" in node.coords:
        return node.coords["query_length"]
    if "query" in node.sizes:
        return xr.DataArray(node.sizes["query"])
    if "key_length" in node.coords and node.name != "cross":
        return node.coords["key_length"]
    if node.name == "cross":
        raise NotCapturedError(
            "The number of queries of the site cross was needed; the trace holds "
            f"{', '.join(map(str, node.data_vars))}. Trace again with a statistic of "
            "queries too, such as FirstMass()."
        )
    return xr.DataArray(node.sizes["key"])


def sees_first_key(node: xr.DataTree) -> xr.DataArray:
    """Whether a query, other than the first, can see key 0."""
    query = node.coords["query"]
    reach = _span(node, "window").clip(max=_span(node, "chunk"))
    return (query >= 1) & (query < reach)


def visible_queries(node: xr.DataTree, last: int | None = None) -> xr.DataArray:
    """Number of queries, of all or only of the last ones, that can see each key."""
    key, window, chunk = node.coords["key"], _span(node, "window"), _span(node, "chunk")
    n_queries = length(node)
    first, end = key, (key + window).clip(max=n_queries)
    if node.name in CAUSAL_SITES:
        end = end.clip(max=key - key % chunk + chunk)
    else:
        first = (key - window + 1).clip(min=0)
    if last is not None:
        first = first.clip(min=n_queries - last)
    is_real = key < node.coords.get("key_length", node.sizes["key"])
    return (end - first).clip(min=0).where(is_real, 0)


def visible_keys(node: xr.DataTree) -> xr.DataArray:
    """Number of keys that each query can see."""
    query = node.coords["query"]
    window, chunk = _span(node, "window"), _span(node, "chunk")
    if node.name in CAUSAL_SITES:
        return (query % chunk + 1).clip(max=window)
    later = (length(node) - query).clip(min=0, max=window)
    return later + query.clip(max=window - 1)


def _span(node: xr.DataTree, name: str) -> xr.DataArray:
    """Tokens of a layer's window or chunk; infinite where it has none."""
    if name in node.coords:
        return node.coords[name].fillna(float("inf"))
    return xr.DataArray(float("inf"))
