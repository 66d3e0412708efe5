"""Attention with the weights in hand, row block by row block, exact under any rule.

A block is `[batch, head, some queries, all keys]`: linear memory. Used where an edit
touches the weights, and where no fused kernel knows the rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels import reference, tiled
from interp.kernels.accumulators import Rows, Tile
from interp.kernels.rules import AttentionCall
from interp.kernels.samples import scatter

ELEMENTS = 1 << 22
"""Weights of a block, at most, as long as one row fits."""


@dataclass(frozen=True)
class Block:
    """Some queries and all keys of a call, as an edit sees them.

    Attributes:
        query: Absolute positions of the queries.
        key: Absolute positions of the keys.
        visible: Which pairs exist.
    """

    query: Int[Tensor, " query"]
    key: Int[Tensor, " key"]
    visible: Bool[Tensor, "batch head query key"]


Edit = Callable[[Float[Tensor, "batch head query key"], Block], Tensor]
"""Of the weights `[batch, head, query, key]` and their block, to edited weights."""


def attend(
    call: AttentionCall,
    edit: Edit | None = None,
    wanted: Sequence[d.Statistic] = (),
) -> tuple[
    Float[Tensor, "batch head query d_value"],
    Float[Tensor, "batch head query"],
    dict[str, Tensor],
]:
    """Output, log-sum-exp and statistics under edited weights.

    Args:
        call: The attention call; padding may be anywhere.
        edit: Applied to each block of weights; None leaves them.
        wanted: Statistics of the edited weights. `lse` stays that of the scores.

    Returns:
        Output in the value's type; log-sum-exp in nats without a learned sink; the
        statistics' arrays `[batch, head, ...]` by name.
    """
    output = call.value.new_zeros(*call.query.shape[:3], call.value.shape[3])
    lse = output.new_full(call.query.shape[:3], -torch.inf, dtype=call.dtype)
    parts: list[dict[str, Tensor]] = []
    for sample, queries, keys in call.samples():
        one = call.narrow(sample, queries, keys)
        own = [s.narrow(sample, queries, keys) for s in wanted]
        done = _of_sample(one, edit, own)
        output[sample, :, queries], lse[sample, :, queries] = done[0], done[1]
        parts.append(done[2])
    return output, lse, scatter(call, wanted, parts)


def _of_sample(
    call: AttentionCall, edit: Edit | None, wanted: Sequence[d.Statistic]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    n_query, n_key = call.mask.query_length, call.mask.key_length
    value = call.value[0].to(call.dtype).repeat_interleave(call.group_size, dim=0)
    output = value.new_zeros(call.n_heads, n_query, value.shape[2])
    lse = value.new_full((call.n_heads, n_query), -torch.inf)
    mass = torch.zeros_like(lse)
    grown = tiled.accumulators(wanted, lse, n_key)
    edges = [s for s in wanted if isinstance(s, d.Edges)]
    edge_rows: list[Tensor] = []
    key = torch.arange(n_key, device=value.device) + call.mask.key_offset
    step = max(ELEMENTS // (call.n_heads * max(n_key, 1)), 1)
    for q0 in range(0, n_query, step):
        q1 = min(q0 + step, n_query)
        rows = call.rows(q0, q1)
        weights, row_lse = reference.weights(rows)
        if edit is not None:
            query = torch.arange(q0, q1, device=value.device) + call.mask.query_offset
            weights = edit(weights, Block(query, key, reference.visible(rows)))
        weights, lse[:, q0:q1] = weights[0], row_lse[0]
        output[:, q0:q1] = weights @ value
        mass[:, q0:q1] = weights.sum(-1)
        scratch = torch.empty_like(weights)
        tile = Tile(call.mask, q0, q1, 0, n_key, weights, None, scratch)
        for part in grown:
            part.update(tile)
        for statistic in edges:
            own = statistic.narrow(0, slice(q0, q1), slice(0, n_key))
            edge_rows.append(_edges(own, rows, weights))
    arrays = tiled.finish(
        grown, wanted, Rows(lse, call.score.sink_logits, mass, call.mask)
    )
    if edges:
        arrays["edges"] = torch.cat(edge_rows, dim=1)
    return output.to(call.value.dtype), lse, {k: a[None] for k, a in arrays.items()}


def _edges(edges: d.Edges, rows: AttentionCall, weights: Tensor) -> Tensor:
    """Edited weights at the targets, `[head, query, edge]`."""
    result = []
    for targets in edges.resolve(rows.mask, weights.device):
        index = targets[0].clamp(min=0).expand(len(weights), -1, -1)
        named = targets[0] >= 0
        mass = (weights.gather(2, index) * named).sum(-1)
        result.append(mass.masked_fill(~named.any(-1), torch.nan))
    return torch.stack(result, -1) if result else weights.new_empty(0)
