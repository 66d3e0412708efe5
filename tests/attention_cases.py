"""Attention calls of every kind, with the pairs that exist told a second time."""

from dataclasses import dataclass, replace
from typing import Any

import matrix_units
import torch
from dense import Dense
from hypothesis import strategies as st
from torch import Tensor

from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule

LENGTHS = (1, 7, 127, 129, 252)
MASKS = ("causal", "window", "full", "local", "chunk", "packed", "dense")
PADDINGS = ("none", "left", "right", "holes", "one empty")
VALUES = ("normal", "huge", "constant keys", "one dominant key", "all equal")
HEADS = ((1, 1), (2, 1), (4, 2), (3, 3))
REACH = 9
"""Window of windows, size of chunks and of packed documents, in tokens."""


@dataclass(frozen=True)
class Case:
    """One call, and its visible pairs `[batch, head, query, key]` in other words."""

    call: AttentionCall
    visible: Tensor

    def spans(self) -> list[tuple[slice, slice]]:
        """From the first to the last real query and key of each sample."""
        mask = self.call.mask
        return [
            (
                _span(mask.query_padding, sample, mask.query_length),
                _span(mask.key_padding, sample, mask.key_length),
            )
            for sample in range(self.call.n_batch)
        ]

    def scores(
        self,
        dtype: torch.dtype,
        unit: float,
        early: bool,
        rounded: int,
        on_units: bool = False,
    ) -> Tensor:
        """Logits of all pairs, in nats times `unit`."""
        call, score = self.call, self.call.score
        cap = score.softcap
        factor = score.scale * unit if cap is None else score.scale / cap
        query = call.query.to(dtype)
        key = call.key.to(dtype).repeat_interleave(call.group_size, 1)
        if on_units:
            dots = matrix_units.products(query, key) * factor
        else:
            dots = query * factor @ key.mT if early else query @ key.mT * factor
        if cap is not None:
            dots = torch.tanh(dots) * (cap * unit)
        if score.position_bias is not None:
            dots = dots + score.position_bias.to(dtype) * unit
        if rounded:
            up = (
                torch.rand(dots.shape, generator=torch.Generator().manual_seed(rounded))
                < 0.5
            )
            step = 4 * torch.finfo(dtype).eps * dots.abs()
            dots = dots + torch.where(up, step, -step)
        return dots.masked_fill(~self.visible, -torch.inf)

    def dense(
        self,
        dtype: torch.dtype,
        *,
        unit: float = 1.0,
        early: bool = False,
        rounded: int = 0,
        on_units: bool = False,
        lse: Tensor | None = None,
    ) -> list[Dense]:
        """The map of each sample, padding at the ends cut off.

        Args:
            dtype: What to compute in.
            unit: Of the logits; log2(e) makes them those of base 2.
            early: Scale the queries, not the products.
            rounded: Seed by which to move each logit, made in about four steps, by a
                rounding a step.
            on_units: Sum products of half precision as a GPU's matrix units do.
            lse: A log-sum-exp in nats to use instead of the scores' own.
        """
        scores = self.scores(dtype, unit, early, rounded, on_units)
        lse = scores.logsumexp(-1) / unit if lse is None else lse.to(dtype)
        norm, sink = lse, self.call.score.sink_logits
        if sink is not None:
            norm = torch.logaddexp(lse, sink.to(dtype)[:, None])
        logs = scores - norm[..., None] * unit
        p = logs.exp() if unit == 1 else logs.exp2()
        p = p.masked_fill(~self.visible, 0.0)
        mask = self.call.mask
        query = torch.arange(mask.query_length) + mask.query_offset
        key = torch.arange(mask.key_length) + mask.key_offset
        maps = []
        for sample, (queries, keys) in enumerate(self.spans()):
            at = sample, slice(None), queries, keys
            maps.append(
                Dense(
                    p[at],
                    self.visible[at],
                    lse[sample, :, queries],
                    query[queries, None] - key[keys],
                    key[keys] - (key[keys.start] if keys.start else 0),
                )
            )
        return maps


def _span(real: Tensor | None, sample: int, length: int) -> slice:
    if real is None:
        return slice(0, length)
    at = real[sample].nonzero().flatten().tolist()
    return slice(at[0], at[-1] + 1) if at else slice(0, 0)


def make(
    n_query: int = 7,
    n_key: int | None = None,
    *,
    mask: str = "causal",
    padding: str = "none",
    values: str = "normal",
    heads: tuple[int, int] = (4, 2),
    d_head: int = 8,
    d_value: int = 8,
    n_batch: int = 1,
    dtype: torch.dtype = torch.float32,
    softcap: float | None = None,
    sinks: bool = False,
    bias: bool = False,
    base: int = 0,
    seed: int = 0,
) -> Case:
    """A random attention call.

    Args:
        n_query: Queries; they are the last positions where there are more keys.
        n_key: Keys; as many as queries if None.
        mask: One of `MASKS`.
        padding: One of `PADDINGS`.
        values: One of `VALUES`.
        heads: Query heads, key heads.
        d_head: Width of a query and a key.
        d_value: Width of a value.
        n_batch: Samples.
        dtype: Of the tensors.
        softcap: Cap of the scores.
        sinks: Whether there are learned sinks.
        bias: Whether there is a bias for each pair.
        base: Position of the first key, above 0 in a sliding cache.
        seed: Of the random numbers.
    """
    n_key = n_query if n_key is None else n_key
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    n_heads, n_kv_heads = heads
    query = normal(n_batch, n_heads, n_query, d_head) * 1.5
    key = normal(n_batch, n_kv_heads, n_key, d_head) * 1.5
    value = normal(n_batch, n_kv_heads, n_key, d_value)
    if values == "huge":
        query, key = query * 20, key * 20
    elif values == "constant keys":
        key = key[:, :, :1].expand_as(key).clone()
    elif values == "one dominant key":
        query[..., 0] = query[..., 0].abs() + 6
        key[:, :, n_key // 2, 0] = 25.0
    elif values == "all equal":
        query = torch.zeros_like(query)
    rule, visible = _mask(mask, n_batch, n_heads, n_query, n_key, base, draw)
    rule, visible = _pad(padding, rule, visible, mask, draw)
    score = ScoreRule(
        scale=d_head**-0.5,
        softcap=softcap,
        sink_logits=normal(n_heads).to(dtype) if sinks else None,
        position_bias=normal(1, n_heads, n_query, n_key).to(dtype) if bias else None,
    )
    call = AttentionCall(query.to(dtype), key.to(dtype), value.to(dtype), score, rule)
    return Case(call, visible)


def _mask(
    kind: str,
    n_batch: int,
    n_heads: int,
    n_query: int,
    n_key: int,
    base: int,
    draw: torch.Generator,
) -> tuple[MaskRule, Tensor]:
    """The rule as the package is told it, and the pairs as the word says."""
    shift = base + max(n_key - n_query, 0)
    q = (torch.arange(n_query) + shift)[:, None]
    k = (torch.arange(n_key) + base)[None]
    causal = k <= q
    offsets = {"query_offset": shift, "key_offset": base, "n_batch": n_batch}
    if kind == "causal":
        rule, seen = MaskRule(n_query, n_key, **offsets), causal
    elif kind == "window":
        rule = MaskRule(n_query, n_key, behind=REACH - 1, **offsets)
        seen = causal & (k > q - REACH)
    elif kind == "full":
        rule = MaskRule(n_query, n_key, ahead=None, **offsets)
        seen = torch.ones_like(causal)
    elif kind == "local":
        rule = MaskRule(n_query, n_key, ahead=REACH, behind=REACH, **offsets)
        seen = (q - k).abs() <= REACH
    elif kind == "chunk":
        rule = MaskRule(
            n_query,
            n_key,
            **offsets,
            function=lambda b, h, q, k: (q // REACH == k // REACH) & (b >= 0),
        )
        seen = causal & (q // REACH == k // REACH)
    elif kind == "packed":
        steps = torch.randint(2, (n_batch, shift + n_query + n_key), generator=draw)
        document = (steps.cumsum(-1) + REACH // 2) // REACH
        rule = MaskRule(
            n_query,
            n_key,
            **offsets,
            function=lambda b, h, q, k: document[b, q] == document[b, k],
        )
        q_document, k_document = document[:, q[:, 0]], document[:, k[0]]
        same = q_document[:, :, None] == k_document[:, None, :]
        return rule, (causal & same)[:, None].expand(-1, n_heads, -1, -1)
    else:
        shape = (n_batch, n_heads, n_query, n_key)
        seen = torch.rand(shape, generator=draw) < 0.3
        seen[:, :, n_query // 2] = False
        return MaskRule(n_query, n_key, ahead=None, dense=seen, **offsets), seen
    return rule, seen.expand(n_batch, n_heads, -1, -1)


def _pad(
    kind: str, rule: MaskRule, visible: Tensor, mask: str, draw: torch.Generator
) -> tuple[MaskRule, Tensor]:
    """Padding of keys, and of the queries that are the same tokens."""
    if kind == "none":
        return rule, visible
    n_batch, _, n_query, n_key = visible.shape
    keys = torch.ones(n_batch, n_key, dtype=torch.bool)
    for sample in range(n_batch):
        cut = (sample + 1) * n_key // 5
        if kind == "left":
            keys[sample, :cut] = False
        elif kind == "right":
            keys[sample, n_key - cut :] = False
        elif kind == "holes":
            keys[sample] = torch.rand(n_key, generator=draw) < 0.7
            keys[sample, n_key // 2] = True
    if kind == "one empty":
        keys[-1] = False
    missing = max(n_query - n_key, 0)
    queries = torch.nn.functional.pad(keys, (0, missing), value=True)[:, -n_query:]
    if mask == "full":  # as in cross-attention: the queries are other tokens
        queries = torch.rand(n_batch, n_query, generator=draw) < 0.8
    rule = replace(rule, key_padding=keys, query_padding=queries)
    return rule, visible & keys[:, None, None] & queries[:, None, :, None]


def moved(call: AttentionCall, device: torch.device) -> AttentionCall:
    """The same call on another device."""
    mask, score = call.mask, call.score

    def to(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    def function(*indices: Tensor) -> Tensor:
        assert mask.function is not None
        return mask.function(*(index.cpu() for index in indices)).to(device)

    return replace(
        call,
        query=call.query.to(device),
        key=call.key.to(device),
        value=call.value.to(device),
        score=replace(
            score,
            sink_logits=to(score.sink_logits),
            position_bias=to(score.position_bias),
        ),
        mask=replace(
            mask,
            key_padding=to(mask.key_padding),
            query_padding=to(mask.query_padding),
            dense=to(mask.dense),
            function=None if mask.function is None else function,
            device=device,
        ),
    )


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@st.composite
def cases(
    draw: st.DrawFn,
    lengths: tuple[int, ...] = LENGTHS,
    widths: tuple[int, ...] = (8, 12),
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> dict[str, Any]:
    """Arguments of `make`, in any combination."""
    pick = draw
    n_query = pick(st.sampled_from(lengths))
    n_key = pick(st.sampled_from((n_query, n_query, *lengths)))
    return dict(
        n_query=n_query,
        n_key=n_key,
        mask=pick(st.sampled_from(MASKS)),
        padding=pick(st.sampled_from(PADDINGS)),
        values=pick(st.sampled_from(VALUES)),
        heads=pick(st.sampled_from(HEADS)),
        d_head=pick(st.sampled_from(widths)),
        d_value=pick(st.sampled_from((8, 6, 16))),
        n_batch=pick(st.sampled_from((1, 2))),
        dtype=pick(st.sampled_from(dtypes)),
        softcap=pick(st.sampled_from((None, None, 20.0))),
        sinks=pick(st.booleans()),
        bias=pick(st.booleans()),
        base=pick(st.sampled_from((0, 0, 5))),
        seed=pick(st.integers(0, 2**16)),
    )
