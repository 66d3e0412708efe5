"""Statistics tile by tile in PyTorch, on any device, nothing of size query x key.

    p = exp2(q.k * scale * log2(e) - lse * log2(e))

Given lse, one pass over the visible tiles is enough: row sums, column sums and
maxima come from the same tile while it is in cache. Base 2 because `exp2` is the
cheaper instruction on every device.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels import workers
from interp.kernels.accumulators import KINDS, Accumulator
from interp.kernels.rules import AttentionCall
from interp.kernels.tiles import Rows, Tile

LOG2E = 1 / math.log(2)

NEVER = -1e4
"""Stand-in for minus infinity in base-2 logits: `exp2` of it is 0, and 0 * it is 0."""

ROWS = 128
"""Queries of a tile: enough that a key block is read once for many of them."""

KEYS = 512
"""Keys of a tile."""

ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Weights of a tile: what stays near a core, or fills a device."""


def log_sum_exp(call: AttentionCall) -> Float[Tensor, "head query"]:
    """Row log-sum-exp of the scores in base 2, learned sink excluded.

    Args:
        call: Of one sample.
    """
    shape = call.query.shape[1:3]
    total = call.query.new_full(shape, -torch.inf, dtype=call.dtype)
    for heads in _head_ranges(call):
        logits_of = _Logits(call, heads, torch.zeros_like(total), -torch.inf)
        for q0, q1 in _row_blocks(call):
            rows = total[heads, q0:q1]
            for k0, k1 in _key_blocks(call, q0, q1):
                logits = logits_of(q0, q1, k0, k1)
                if logits is None:
                    continue
                largest = logits.amax(-1).nan_to_num(neginf=0.0)
                part = logits.sub_(largest[..., None]).exp2_().sum(-1).log2_()
                torch.logaddexp2(rows, part.add_(largest), out=rows)
    return total


def statistics(
    call: AttentionCall,
    wanted: Sequence[d.Statistic],
    lse: Float[Tensor, "batch head query"] | None = None,
) -> dict[str, Tensor]:
    """The wanted statistics' arrays, `[batch, head, ...]` by name.

    Args:
        call: Of one sample.
        wanted: Computed together in one pass.
        lse: Row log-sum-exp in nats, learned sink excluded; a pass of its own if None.
    """
    norm = log_sum_exp(call) if lse is None else lse[0].to(call.dtype) * LOG2E
    lse = norm * math.log(2) if lse is None else lse[0].to(call.dtype)
    sink = call.score.sink_logits
    sink = None if sink is None else sink.to(lse)
    if sink is not None:
        norm = torch.logaddexp2(norm, sink[:, None] * LOG2E)
    kinds = [s for s in wanted if type(s) in KINDS]
    n_workers = torch.get_num_threads() if call.query.device.type == "cpu" else 0
    blocks = list(_row_blocks(call))
    stripes = max(min(n_workers, len(blocks)), 1)
    ranges = list(_head_ranges(call))
    jobs = [(heads, blocks[i::stripes]) for heads in ranges for i in range(stripes)]

    def work(job: tuple[slice, list[tuple[int, int]]]) -> list[Accumulator]:
        heads, own = job
        parts = accumulators(kinds, lse[heads], call.mask.key_length)
        for tile in _tiles(call, heads, own, norm):
            for part in parts:
                part.update(tile)
        return parts

    done: list[list[Accumulator]] = [[] for _ in jobs]
    if kinds:
        done = workers.run(work, jobs, n_workers)
    by_heads = []
    for index, heads in enumerate(ranges):
        parts, *others = done[index * stripes : (index + 1) * stripes]
        for other in others:
            for part, rest in zip(parts, other, strict=True):
                part.merge(rest)
        own_sink = None if sink is None else sink[heads]
        rows = Rows(lse[heads], own_sink, call.mask.of_heads(heads))
        by_heads.append(finish(parts, wanted, rows))
    arrays = {
        name: torch.cat([h[name] for h in by_heads])[None] for name in by_heads[0]
    }
    for statistic in wanted:
        if isinstance(statistic, d.Edges):
            edges = edge_weights(call, statistic, norm)
            blind = (lse == -torch.inf)[..., None]
            arrays["edges"] = edges.masked_fill(blind, torch.nan)[None]
        elif isinstance(statistic, d.Norms):
            arrays |= norms(call)
    return arrays


def finish(
    accumulators: Sequence[Accumulator],
    wanted: Sequence[d.Statistic],
    rows: Rows,
) -> dict[str, Tensor]:
    """The arrays of accumulators, and of statistics that the lse alone decides."""
    arrays: dict[str, Tensor] = {}
    for statistic in wanted:
        if isinstance(statistic, d.Lse):
            arrays["lse"] = rows.only_seen(rows.lse)
        elif isinstance(statistic, d.LearnedSink):
            share = torch.zeros_like(rows.lse)
            if rows.sink_logits is not None:
                share = torch.sigmoid(rows.sink_logits[:, None] - rows.lse)
            arrays["learned_sink"] = rows.only_seen(share)
    for accumulator in accumulators:
        arrays |= accumulator.finish(rows)
    return arrays


def accumulators(
    wanted: Sequence[d.Statistic], like: Float[Tensor, "head query"], n_keys: int
) -> list[Accumulator]:
    """Empty accumulators of the statistics that need the weights.

    Entropy first: it alone reads the logarithms, which others may overwrite.
    """
    kinds = [s for s in wanted if type(s) in KINDS]
    kinds.sort(key=lambda s: not isinstance(s, d.Entropy))
    return [KINDS[type(s)](s, like, n_keys) for s in kinds]


def norms(call: AttentionCall) -> dict[str, Float[Tensor, "one head key"]]:
    """Norms of keys and values; NaN where no query sees the key.

    Args:
        call: Of one sample.
    """
    unseen = call.mask.queries_per_key()[0].to(call.key.device) == 0
    found = {"key_norm": call.key, "value_norm": call.value}
    for name, vectors in found.items():
        norm = torch.linalg.vector_norm(vectors, dim=-1, dtype=call.dtype)
        norm = norm.repeat_interleave(call.group_size, dim=1)
        found[name] = norm.masked_fill(unseen, torch.nan)
    return found


def edge_weights(
    call: AttentionCall, edges: d.Edges, norm: Float[Tensor, "head query"]
) -> Float[Tensor, "head query edge"]:
    """Weights at named pairs, gathered: the cost follows the number of pairs.

    Args:
        call: Of one sample.
        edges: Target keys of each query.
        norm: Log-sum-exp with the learned sink, base 2.
    """
    result = []
    for rows in edges.resolve(call.mask, call.query.device):
        mass = torch.zeros_like(norm)
        for targets in rows[0].unbind(-1):
            mass += _pair_weights(call, targets, norm)
        result.append(mass.masked_fill_((rows[0] < 0).all(-1), torch.nan))
    if not result:
        return norm.new_empty(*norm.shape, 0)
    return torch.stack(result, -1)


def _pair_weights(
    call: AttentionCall, targets: Tensor, norm: Tensor
) -> Float[Tensor, "head query"]:
    """P of each query on its one target `[query]`, 0 where there is none."""
    index = targets.clamp(min=0)
    key = call.key[0].index_select(1, index).to(call.dtype)
    query = call.query[0].to(call.dtype)
    dots = torch.einsum("gnqd,gqd->gnq", query.unflatten(0, (len(key), -1)), key)
    logits = dots.flatten(0, 1) * call.score.scale
    if call.score.softcap is not None:
        logits = call.score.softcap * torch.tanh(logits / call.score.softcap)
    bias = call.score.position_bias
    if bias is not None:
        rows = torch.arange(len(index), device=index.device)
        logits = logits + bias[0, :, rows, index]
    seen = call.mask.pairs(targets[None])[0]
    return (logits * LOG2E - norm).exp2().masked_fill(~seen, 0.0).nan_to_num(0.0)


def _head_ranges(call: AttentionCall) -> Iterator[slice]:
    """Ranges of query heads, whole groups each, whose tiles fit."""
    groups = max(ELEMENTS[_kind(call)] // (ROWS * KEYS * call.group_size), 1)
    step = groups * call.group_size
    for first in range(0, call.n_heads, step):
        yield slice(first, min(first + step, call.n_heads))


def _kind(call: AttentionCall) -> str:
    return "cpu" if call.query.device.type == "cpu" else "cuda"


def _row_blocks(call: AttentionCall) -> Iterator[tuple[int, int]]:
    for q0 in range(0, call.mask.query_length, ROWS):
        yield q0, min(q0 + ROWS, call.mask.query_length)


def _key_blocks(call: AttentionCall, q0: int, q1: int) -> Iterator[tuple[int, int]]:
    low, high = call.mask.span(q0, q1)
    for k0 in range(low, high, KEYS):
        yield k0, min(k0 + KEYS, high)


class _Logits:
    """Base-2 logits of any tile, less the row's norm, in buffers used again."""

    def __init__(
        self, call: AttentionCall, heads: slice, norm: Tensor, never: float = NEVER
    ) -> None:
        group = call.group_size
        kv_heads = slice(heads.start // group, heads.stop // group)
        self.call, self.group, self.heads = call, group, heads
        self.query = call.query[0, heads]
        self.key = call.key[0, kv_heads].to(call.dtype)
        self.norm, self.never = norm[heads].nan_to_num(neginf=0.0), never
        n_heads = heads.stop - heads.start
        size = n_heads * ROWS * KEYS
        self.buffers = [self.key.new_empty(size) for _ in range(3)]

    def shaped(self, buffer: int, n_query: int, n_key: int) -> Tensor:
        """A buffer as `[head, query, key]`."""
        n_heads = self.heads.stop - self.heads.start
        flat = self.buffers[buffer][: n_heads * n_query * n_key]
        return flat.view(n_heads, n_query, n_key)

    def __call__(self, q0: int, q1: int, k0: int, k1: int) -> Tensor | None:
        """The tile `[head, query, key]`, `never` where hidden; None when all is."""
        call = self.call
        masked = [
            (slice(a - k0, b - k0), self._hidden(call.mask.tile(q0, q1, a, b)))
            for a, b in call.mask.uncertain(q0, q1, k0, k1)
        ]
        if len(masked) == 1 and masked[0][0] == slice(0, k1 - k0):
            hidden = masked[0][1]
            if hidden is not None and bool(hidden.all()):
                return None
        cap, bias = call.score.softcap, call.score.position_bias
        factor = call.score.scale * (LOG2E if cap is None else 1 / cap)
        logits = self.shaped(0, q1 - q0, k1 - k0)
        n_kv = self.key.shape[0]
        query = self.query[:, q0:q1].to(call.dtype) * factor
        query = query.unflatten(0, (n_kv, -1)).flatten(1, 2)
        key = self.key[:, k0:k1].transpose(1, 2)
        norm = self.norm[:, q0:q1]
        out = logits.view(n_kv, -1, k1 - k0)
        if cap is None:
            norm = norm.reshape(n_kv, -1, 1)
            torch.baddbmm(norm, query, key, beta=-1, out=out)
        else:
            torch.bmm(query, key, out=out)
            logits.tanh_().mul_(cap * LOG2E).sub_(norm[..., None])
        if bias is not None:
            own = self.heads if bias.shape[1] > 1 else slice(None)
            logits.add_(bias[0, own, q0:q1, k0:k1].to(call.dtype), alpha=LOG2E)
        for columns, hidden in masked:
            if hidden is not None:
                logits[..., columns].masked_fill_(hidden, self.never)
        return logits

    def _hidden(self, visible: Tensor | None) -> Tensor | None:
        """Pairs that do not exist, of the heads that are computed."""
        if visible is None:
            return None
        own = visible[0] if visible.shape[1] == 1 else visible[0, self.heads]
        return ~own.to(self.key.device)


def _tiles(
    call: AttentionCall, heads: slice, blocks: list[tuple[int, int]], norm: Tensor
) -> Iterator[Tile]:
    logits = _Logits(call, heads, norm)
    for q0, q1 in blocks:
        for k0, k1 in _key_blocks(call, q0, q1):
            logs = logits(q0, q1, k0, k1)
            if logs is None:
                continue
            weights = logits.shaped(1, q1 - q0, k1 - k0)
            torch.exp2(logs, out=weights)
            scratch = logits.shaped(2, q1 - q0, k1 - k0)
            yield Tile(call.mask, q0, q1, k0, k1, weights, logs, scratch)
