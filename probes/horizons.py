"""How much later tokens look at a token: attention received over ranges of distance.

A horizon (near, far) holds the queries t of a key s with s + near <= t <= s + far; far
is None up to the end of the text.
"""

from dataclasses import replace

import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.kernels.definitions import FutureInfluence, Received, Statistic
from interp.kernels.rules import AttentionCall
from interp.kernels.statistics import compute
from interp.probes.visibility import length, visible_queries

Horizon = tuple[int, int | None]

HORIZONS: tuple[Horizon, ...] = ((10, 50), (10, 100), (0, None))
"""Of credit in the paper's first and second version, and of its analysis."""

END = 1 << 30
"""Farther than any text is long."""


def label(horizon: Horizon) -> str:
    """How a horizon is written, such as "10-50" and "0-end"."""
    near, far = horizon
    return f"{near}-{'end' if far is None else far}"


def statistic_of(horizon: Horizon) -> Statistic:
    """The statistic that measures a horizon.

    Raises:
        ShapeError: The horizon is empty.
    """
    near, far = horizon
    return FutureInfluence(near, END if far is None else far)


def received_within(
    call: AttentionCall, lse: Float[Tensor, "batch head query"], horizon: Horizon
) -> Float[Tensor, "batch head key"]:
    """Mean weight of a key over the queries of a horizon that see it.

    Only the band of the horizon is looked at: the cost is linear in its width.

    Args:
        call: The attention call.
        lse: Row log-sum-exp in nats, learned sink excluded.
        horizon: Nearest and farthest query.
    """
    wanted, mask = statistic_of(horizon), call.mask
    if horizon == (0, None) and mask.ahead == 0:
        wanted = Received()
    if horizon[1] is not None:
        behind = horizon[1] if mask.behind is None else min(mask.behind, horizon[1])
        call = replace(call, mask=replace(mask, behind=behind))
    return compute(call, [wanted], lse=lse)[wanted.name]


def held(node: xr.DataTree) -> dict[Horizon, xr.DataArray]:
    """The horizons of which a site holds what `received_within` gives.

    Besides those recorded as such it is that of `fai`, and to the end `received`.
    """
    found: dict[Horizon, xr.DataArray] = {}
    if "received" in node:
        found[0, None] = node.dataset["received"]
    if "fai" in node:
        near, far = (int(node["fai"].attrs[name]) for name in ("near", "far"))
        found[near, None if far == END else far] = node.dataset["fai"]
    if "received_within" in node:
        within = node.dataset["received_within"]
        pairs = zip(within["near"].values, within["far"].values, strict=True)
        for n, (near, far) in enumerate(pairs):
            own = int(near), None if far == END else int(far)
            found[own] = within.isel(horizon=n, drop=True)
    return found


def influence(
    received: xr.DataArray, node: xr.DataTree, horizon: Horizon
) -> xr.DataArray:
    """Mean weight of a key over all queries of a horizon, 0 for those that see it not.

    So the mean over heads is that of their mean map, whatever their windows.

    Args:
        received: Mean weight over the queries that see the key.
        node: The site that it belongs to.
        horizon: Nearest and farthest query.

    Returns:
        As `received`; NaN where the horizon lies beyond the end of the text.

    Source:
        FAI: arXiv:2510.13554 Def. 4.2.
    """
    key, near = node.coords["key"], horizon[0]
    far = END if horizon[1] is None else horizon[1]
    there = ((length(node) - key).clip(max=far + 1) - near).clip(min=0)
    seen = seeing(node, horizon)
    return received.where(seen > 0, 0) * (seen / there.where(there > 0))


def seeing(node: xr.DataTree, horizon: Horizon) -> xr.DataArray:
    """Number of queries of a horizon that can see each key."""
    near, far = horizon
    within = visible_queries(node).clip(max=END if far is None else far + 1)
    return (within - near).clip(min=0)
