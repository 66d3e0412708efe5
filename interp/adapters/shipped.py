"""Statistics in torch alone: what is sent to a server that knows no interp.

nnsight sends the source of these functions; they may use torch and each other, and
nothing else. The definitions are those of `interp.kernels.definitions`. A block of
queries by all keys is the largest that is made.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 24
"""Pairs of query and key, over all heads, whose weights are made at a time."""

Wanted = list[tuple[str, dict[str, Any]]]
"""The first array of each statistic, and its parameters."""


def attention_statistics(
    module: Any,
    tensors: list[Tensor],
    options: dict[str, Any],
    wanted: Wanted,
    real_queries: Tensor | None,
    real_keys: Tensor | None,
) -> dict[str, Tensor]:
    """Statistics of one attention call of transformers.

    Args:
        module: Makes the call.
        tensors: Query `[batch, head, query, d]`, key and value of fewer heads, mask.
        options: Of the call.
        wanted: What to compute.
        real_queries: `[batch, query]`, True for real tokens; None when all are.
        real_keys: `[batch, key]`, likewise.

    Returns:
        Arrays `[batch, head, query or key, ...]` by name, on the CPU.
    """
    query, key, mask = tensors[0], tensors[1], (tensors[3:] or [None])[0]
    n_batch, n_heads, n_query, _ = query.shape
    n_key = key.shape[2]
    places = torch.arange(n_key, device=query.device)
    start = torch.zeros(n_batch, dtype=torch.long, device=query.device)
    if real_keys is not None:
        real_keys = real_keys.to(query.device)
        start = real_keys.long().argmax(-1)
    frame: dict[str, Any] = {
        "places": places,
        "order": (places - start[:, None])[:, None, None],
        "sinks": options.get("s_aux"),
        "key": key,
        "value": tensors[2],
    }
    n_rows = max(BLOCK // (n_batch * n_heads * n_key), 1)
    rows: dict[str, list[Tensor]] = {}
    columns: dict[str, Tensor] = {}
    for first in range(0, n_query, n_rows):
        last = min(first + n_rows, n_query)
        scores = block_scores(query[:, :, first:last], key, options, first)
        seen = visible(module, mask, options, first, last, n_query, n_key, query.device)
        if mask is not None and mask.is_floating_point():
            scores = scores + mask[..., first:last, :n_key].clamp(min=-1e4)
        if real_keys is not None:
            seen = seen & real_keys[:, None, None]
        if real_queries is not None:
            own = real_queries[:, first:last].to(query.device)
            seen = seen & own[:, None, :, None]
        seen = seen.expand(n_batch, n_heads, last - first, n_key)
        scores = scores.masked_fill(~seen, -torch.inf)
        norm = lse = scores.logsumexp(-1)
        if frame["sinks"] is not None:
            norm = torch.logaddexp(lse, frame["sinks"].to(lse)[:, None])
        p = (scores - norm[..., None]).exp().nan_to_num(0.0)
        at = torch.arange(first, last, device=query.device) + (n_key - n_query)
        distance = at[:, None] - places
        block = {"p": p, "lse": lse, "seen": seen, "distance": distance, "at": first}
        for name, parameters in wanted:
            for array, values in row_values(name, parameters, {**frame, **block}):
                rows.setdefault(array, []).append(values)
            add_columns(columns, name, parameters, block)
    found = {name: torch.cat(parts, dim=2) for name, parts in rows.items()}
    for name, _ in wanted:
        found.update(finished_columns(columns, name))
    return {name: values.cpu() for name, values in found.items()}


def block_scores(
    query: Tensor, key: Tensor, options: dict[str, Any], first: int
) -> Tensor:
    """Scores of some queries `[batch, head, query, key]`, before any mask."""
    n_batch, n_heads, n_rows, width = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(dtype).reshape(n_batch, key.shape[1], -1, width)
    scores = (grouped @ key.to(dtype).mT).reshape(n_batch, n_heads, n_rows, -1)
    scale, softcap = options.get("scaling"), options.get("softcap")
    scores = scores * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    bias = options.get("position_bias")
    if bias is not None:
        scores = scores + bias[..., first : first + n_rows, :].to(dtype)
    return scores


def visible(
    module: Any,
    mask: Tensor | None,
    options: dict[str, Any],
    first: int,
    last: int,
    n_query: int,
    n_key: int,
    device: torch.device,
) -> Tensor:
    """Which keys some queries see, `[batch or 1, head or 1, query, key]`."""
    if mask is not None and mask.dim() == 4:
        own = mask[..., first:last, :n_key]
        if own.dtype == torch.bool:
            return own
        return own > torch.finfo(own.dtype).min / 2
    seen = torch.ones(last - first, n_key, dtype=torch.bool, device=device)
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if causal and n_query > 1:
        seen = seen.tril(first + n_key - n_query)
        window = options.get("sliding_window")
        if window is not None:
            seen = seen.triu(first + n_key - n_query - window + 1)
    if mask is not None:  # of keys alone, as flash kernels take it
        return seen & mask[:, None, None, :n_key].bool()
    return seen[None, None]


def row_values(
    name: str, parameters: dict[str, Any], block: dict[str, Any]
) -> list[tuple[str, Tensor]]:
    """Arrays of one number a query; NaN and -1 where it sees no key."""
    p, lse, distance = block["p"], block["lse"], block["distance"]
    blind = ~block["seen"].any(-1)
    if name == "max_mass":
        mass, key = p.max(-1)
        hidden = mass.masked_fill(blind, torch.nan)
        return [("max_mass", hidden), ("max_key", key.masked_fill(blind, -1))]
    if name == "edges":
        return [("edges", edge_values(parameters["targets"], block))]
    if name == "lse":
        values = lse
    elif name == "entropy":
        values = torch.special.entr(p).sum(-1)
    elif name == "distance":
        values = (p * distance).sum(-1)
    elif name == "waad":
        values = (p * distance.clamp(max=parameters["clip"])).sum(-1)
    elif name == "sink_mass":
        order = block["order"]
        values = (p * ((order >= 0) & (order < parameters["first"]))).sum(-1)
    elif name == "first_mass":
        values = (p * (block["order"] == 0)).sum(-1)
    elif name == "learned_sink":
        sinks = block["sinks"]
        if sinks is None:
            values = torch.zeros_like(lse)
        else:
            values = torch.sigmoid(sinks.to(lse)[:, None] - lse)
    elif name == "local_mass":
        values = (p * (distance < parameters["window"])).sum(-1)
    else:
        return []
    return [(name, values.masked_fill(blind, torch.nan))]


def edge_values(targets: list[Tensor], block: dict[str, Any]) -> Tensor:
    """Mass on named keys, `[batch, head, query, edge]`; -1 names none."""
    p = block["p"]
    found = []
    for rows in targets:
        own = rows[:, block["at"] : block["at"] + p.shape[2]].to(p.device)
        own = own.expand(p.shape[0], -1, -1)[:, None].expand(-1, p.shape[1], -1, -1)
        mass = (p.gather(-1, own.clamp(min=0)) * (own >= 0)).sum(-1)
        found.append(mass.masked_fill(~(own >= 0).any(-1), torch.nan))
    edges = torch.stack(found, dim=-1)
    return edges.masked_fill(~block["seen"].any(-1)[..., None], torch.nan)


def add_columns(
    columns: dict[str, Tensor],
    name: str,
    parameters: dict[str, Any],
    block: dict[str, Any],
) -> None:
    """Adds a block's part of one number a key."""
    p, seen = block["p"], block["seen"]
    if name == "received_max":
        largest = p.masked_fill(~seen, -1.0).amax(2)
        known = columns.get("largest")
        columns["largest"] = largest if known is None else known.maximum(largest)
        return
    if name not in ("received", "fai"):
        return
    if name == "fai":
        distance = block["distance"]
        inside = (distance >= parameters["near"]) & (distance <= parameters["far"])
        seen = seen & inside
    for part, values in (("sum", (p * seen).sum(2)), ("count", seen.sum(2))):
        known = columns.get(f"{name} {part}")
        columns[f"{name} {part}"] = values if known is None else known + values


def finished_columns(columns: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Arrays of one number a key; NaN where no query counts."""
    if name == "received_max":
        largest = columns["largest"]
        return {name: largest.masked_fill(largest < 0, torch.nan)}
    if name in ("received", "fai"):
        return {name: columns[f"{name} sum"] / columns[f"{name} count"]}
    return {}


def call_name(names: list[str] | tuple[str, ...]) -> str | None:
    """The call of the attention interface among the operations of a module's code.

    A name that is bound and then called counts both: the call is the last of them.
    """
    prefix = "attention_interface_"
    own = [name for name in names if name.startswith(prefix)]
    calls = [name for name in own if name.removeprefix(prefix).isdigit()]
    return calls[-1] if calls else None
