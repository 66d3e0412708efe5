"""Every statistic by its definition, from the dense map: the specification.

Quadratic in the number of tokens; made for tests and short texts. The tensors may
be promoted to float64 first, and then this is the truth the others are held to.
"""

from functools import singledispatch

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels.rules import AttentionCall

Weights = Float[Tensor, "batch head query key"]
Visible = Bool[Tensor, "batch head query key"]


def scores(call: AttentionCall) -> Weights:
    """Logits of all pairs; minus infinity where a pair does not exist."""
    key = call.key.repeat_interleave(call.group_size, dim=1).to(call.dtype)
    logits = call.query.to(call.dtype) @ key.transpose(2, 3) * call.score.scale
    if call.score.softcap is not None:
        logits = call.score.softcap * torch.tanh(logits / call.score.softcap)
    if call.score.position_bias is not None:
        logits = logits + call.score.position_bias.to(call.dtype)
    return logits.masked_fill(~visible(call), -torch.inf)


def visible(call: AttentionCall) -> Visible:
    """Which pairs exist, for every sample and head."""
    shape = (*call.query.shape[:3], call.key.shape[2])
    tile = call.mask.tile(0, shape[2], 0, shape[3])
    if tile is None:
        return torch.ones(shape, dtype=torch.bool, device=call.query.device)
    return tile.to(call.query.device).expand(shape)


def weights(call: AttentionCall) -> tuple[Weights, Float[Tensor, "batch head query"]]:
    """Attention weights, and the log-sum-exp without a learned sink."""
    logits = scores(call)
    lse = logits.logsumexp(-1)
    norm = lse
    if call.score.sink_logits is not None:
        sink = call.score.sink_logits.to(call.dtype)[None, :, None]
        norm = torch.logaddexp(lse, sink)
    return (logits - norm[..., None]).exp().nan_to_num(0.0), lse


def attention(call: AttentionCall) -> Float[Tensor, "batch head query d_value"]:
    """Output of the attention call; rows that see nothing are zero."""
    value = call.value.repeat_interleave(call.group_size, dim=1).to(call.dtype)
    return weights(call)[0] @ value


def statistics(
    call: AttentionCall,
    wanted: tuple[d.Statistic, ...],
    maps: Weights | None = None,
) -> dict[str, Tensor]:
    """The wanted statistics' arrays, computed densely.

    Args:
        call: Its rules say which pairs exist, and where they stand.
        wanted: What to compute.
        maps: Weights of that call that somebody else has computed; those of `call`
            if None.

    Returns:
        Arrays `[batch, head, ...]` by name. Rows without any visible key and keys
        without any query are NaN.
    """
    dense = _Dense(call, maps)
    return {name: a for s in wanted for name, a in _define(s, dense).items()}


class _Dense:
    """The map and what the definitions share."""

    def __init__(self, call: AttentionCall, maps: Tensor | None) -> None:
        self.call = call
        self.p, self.lse = weights(call)
        if maps is not None:
            self.p = maps
        self.visible = visible(call)
        n_query, n_key = self.p.shape[2:]
        self.distance = call.mask.distance(0, n_query, 0, n_key, self.p.device)
        key = torch.arange(n_key, device=self.p.device)
        self.order = key + call.mask.key_offset - call.mask.start

    def rows(self, values: Tensor) -> Tensor:
        seen = self.visible.any(-1)
        return values.masked_fill(~seen, torch.nan)

    def columns(self, values: Tensor, counted: Tensor | None = None) -> Tensor:
        seen = self.visible if counted is None else counted
        return values.masked_fill(~seen.any(-2), torch.nan)


@singledispatch
def _define(statistic: d.Statistic, dense: _Dense) -> dict[str, Tensor]:
    raise NotImplementedError(statistic)


@_define.register
def _(_s: d.Lse, m: _Dense) -> dict[str, Tensor]:
    return {"lse": m.rows(m.lse)}


@_define.register
def _(_s: d.Entropy, m: _Dense) -> dict[str, Tensor]:
    return {"entropy": m.rows(torch.special.entr(m.p).sum(-1))}


@_define.register
def _(_s: d.Distance, m: _Dense) -> dict[str, Tensor]:
    return {"distance": m.rows((m.p * m.distance).sum(-1))}


@_define.register
def _(s: d.ClippedDistance, m: _Dense) -> dict[str, Tensor]:
    return {"waad": m.rows((m.p * m.distance.clamp(max=s.clip)).sum(-1))}


@_define.register
def _(s: d.SinkMass, m: _Dense) -> dict[str, Tensor]:
    first = (m.order >= 0) & (m.order < s.first)
    return {"sink_mass": m.rows((m.p * first).sum(-1))}


@_define.register
def _(_s: d.FirstMass, m: _Dense) -> dict[str, Tensor]:
    return {"first_mass": m.rows((m.p * (m.order == 0)).sum(-1))}


@_define.register
def _(_s: d.LearnedSink, m: _Dense) -> dict[str, Tensor]:
    sink = m.call.score.sink_logits
    if sink is None:
        return {"learned_sink": m.rows(torch.zeros_like(m.lse))}
    sink = sink.to(m.lse.dtype)[None, :, None]
    return {"learned_sink": m.rows(torch.sigmoid(sink - m.lse))}


@_define.register
def _(s: d.LocalMass, m: _Dense) -> dict[str, Tensor]:
    return {"local_mass": m.rows((m.p * (m.distance < s.window)).sum(-1))}


@_define.register
def _(_s: d.MaxMass, m: _Dense) -> dict[str, Tensor]:
    mass, key = m.p.max(-1)
    key = key.masked_fill(~m.visible.any(-1), -1)
    return {"max_mass": m.rows(mass), "max_key": key}


@_define.register
def _(s: d.TopKeys, m: _Dense) -> dict[str, Tensor]:
    ordered = m.p.masked_fill(~m.visible, -1.0).sort(
        dim=-1, descending=True, stable=True
    )
    pad = (0, max(s.k - m.p.shape[-1], 0))
    mass, key = (
        torch.nn.functional.pad(values[..., : s.k], pad, value=-1) for values in ordered
    )
    missing = mass < 0
    mass, key = mass.masked_fill(missing, torch.nan), key.masked_fill(missing, -1)
    return {"top_mass": mass, "top_key": key}


@_define.register
def _(_s: d.Received, m: _Dense) -> dict[str, Tensor]:
    return {"received": m.p.sum(-2) / m.visible.sum(-2)}


@_define.register
def _(s: d.ReceivedLate, m: _Dense) -> dict[str, Tensor]:
    p, seen = m.p[..., -s.last :, :], m.visible[..., -s.last :, :]
    return {"received_late": p.sum(-2) / seen.sum(-2)}


@_define.register
def _(_s: d.ReceivedMax, m: _Dense) -> dict[str, Tensor]:
    return {"received_max": m.columns(m.p.amax(-2))}


@_define.register
def _(s: d.FutureInfluence, m: _Dense) -> dict[str, Tensor]:
    near = (m.distance >= s.near) & (m.distance <= s.far)
    counted = m.visible & near
    return {"fai": m.columns((m.p * counted).sum(-2) / counted.sum(-2), counted)}


@_define.register
def _(_s: d.Norms, m: _Dense) -> dict[str, Tensor]:
    found = {"key_norm": m.call.key, "value_norm": m.call.value}
    for name, vectors in found.items():
        norm = vectors.to(m.call.dtype).norm(dim=-1)
        found[name] = m.columns(norm.repeat_interleave(m.call.group_size, 1))
    return found


@_define.register
def _(s: d.Edges, m: _Dense) -> dict[str, Tensor]:
    rows = []
    for targets in s.resolve(m.call.mask, m.p.device):
        targets = targets.expand(m.p.shape[0], -1, -1)
        index = targets.clamp(min=0)[:, None].expand(-1, m.p.shape[1], -1, -1)
        named = targets[:, None] >= 0
        mass = (m.p.gather(-1, index) * named).sum(-1)
        rows.append(mass.masked_fill(~named.any(-1), torch.nan))
    shape = (*m.p.shape[:3], 0)
    edges = torch.stack(rows, -1) if rows else m.p.new_empty(shape)
    return {"edges": edges.masked_fill(~m.visible.any(-1)[..., None], torch.nan)}


@_define.register
def _(s: d.BlockMap, m: _Dense) -> dict[str, Tensor]:
    n_query, n_key = m.p.shape[2:]
    pad = (0, -n_key % s.size, 0, -n_query % s.size)

    def blocks(values: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(values, pad)
        return padded.unflatten(3, (-1, s.size)).unflatten(2, (-1, s.size))

    pairs = blocks(m.visible.to(m.p.dtype)).sum((3, 5))
    largest = blocks(m.p).amax((3, 5)).masked_fill(pairs == 0, torch.nan)
    return {"block_mean": blocks(m.p).sum((3, 5)) / pairs, "block_max": largest}


@_define.register
def _(_s: d.Pattern, m: _Dense) -> dict[str, Tensor]:
    return {"pattern": m.p.masked_fill(~m.visible.any(-1, keepdim=True), torch.nan)}
