"""Attention with the weights in hand, row block by row block, exact under any rule.

A block is some queries of one group of heads against all the keys that they may see:
linear memory. On a CPU this is also the fastest way to an output together with its
statistics, because the weights are made once and serve both. It carries edits, and
what no fused kernel knows.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels import tiled, workers
from interp.kernels.accumulators import KINDS, Accumulator
from interp.kernels.edits import Block, Edit
from interp.kernels.rules import AttentionCall
from interp.kernels.samples import scatter
from interp.kernels.tiles import Rows, Tile

ROWS = 128
"""Queries of a block on a CPU, unless there are few keys or very many."""

NEAR_CORE = 1 << 18
"""Weights of a block that stay in the cache of one core."""

ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Weights of a block, at most, as long as one row fits."""

WORTH_A_WORKER = 1 << 21
"""Weights that pay for a worker more."""

FEWEST_ROWS = 16
"""Rows of a block below which two passes with fewer keys at a time are faster."""


def is_fastest(call: AttentionCall) -> bool:
    """True where one pass over row blocks beats a fused kernel and a second pass."""
    rows = ELEMENTS["cpu"] // (call.group_size * max(call.mask.key_length, 1))
    return call.query.device.type == "cpu" and rows >= FEWEST_ROWS


def attend(
    call: AttentionCall,
    wanted: Sequence[d.Statistic] = (),
    edits: Sequence[Edit] = (),
) -> tuple[
    Float[Tensor, "batch head query d_value"],
    Float[Tensor, "batch head query"],
    dict[str, Tensor],
]:
    """Output, log-sum-exp and statistics, of edited weights if there are edits.

    Args:
        call: The attention call; padding may be anywhere.
        wanted: Statistics of the weights that the output is made of.
        edits: Changes of logits and weights, one after the other.

    Returns:
        Output in the value's type; log-sum-exp in nats without a learned sink; the
        statistics' arrays `[batch, head, ...]` by name. Rows that see no key give
        zeros and -inf. The log-sum-exp is that of the edited logits.
    """
    shape = call.query.shape[:3]
    output = call.value.new_zeros(*shape, call.value.shape[3], dtype=call.dtype)
    lse = output.new_full(shape, -torch.inf)
    parts = []
    with torch.no_grad():
        for sample, queries, keys in call.samples():
            one = call.narrow(sample, queries, keys)
            own = [s.narrow(sample, queries, keys) for s in wanted]
            room = output[sample, :, queries], lse[sample, :, queries]
            changes = [edit.narrow(sample, queries, keys) for edit in edits]
            parts.append(_Sample(one, sample, changes, own, *room).run())
    return output.to(call.value.dtype), lse, scatter(call, wanted, parts)


class _Sample:
    """The work on one sample: jobs over heads and rows, each with its own buffers."""

    def __init__(
        self,
        call: AttentionCall,
        sample: int,
        edits: Sequence[Edit],
        wanted: Sequence[d.Statistic],
        output: Float[Tensor, "head query d_value"],
        lse: Float[Tensor, "head query"],
    ) -> None:
        self.call, self.sample = call, sample
        self.edits, self.wanted = edits, wanted
        self.output, self.lse = output, lse
        self.kinds = [s for s in wanted if type(s) in KINDS]
        self.edges = [
            rows[0]
            for s in wanted
            if isinstance(s, d.Edges)
            for rows in s.resolve(call.mask, lse.device)
        ]
        targets = torch.cat([lse.new_empty(lse.shape[1], 0).long(), *self.edges], 1)
        self.targets = targets
        self.target_mass = lse.new_zeros(lse.shape[0], *targets.shape)
        sink = call.score.sink_logits
        self.sink = None if sink is None else sink.to(lse)

    def run(self) -> dict[str, Tensor]:
        """Fills output and lse; the statistics' arrays `[1, head, ...]`."""
        call = self.call
        on_cpu = call.query.device.type == "cpu"
        width = call.group_size * max(call.mask.key_length, 1)
        most = max(ELEMENTS["cpu" if on_cpu else "cuda"] // width, 1)
        step = min(most, max(ROWS, NEAR_CORE // width)) if on_cpu else most
        blocks = [
            (q0, min(q0 + step, call.mask.query_length))
            for q0 in range(0, call.mask.query_length, step)
        ]
        pairs = call.n_heads * call.mask.query_length * call.mask.key_length
        n_workers = min(torch.get_num_threads(), 1 + pairs // (2 * WORTH_A_WORKER))
        stripes = max(min(n_workers, len(blocks)), 1) if on_cpu else 1
        groups = [
            slice(first, first + call.group_size)
            for first in range(0, call.n_heads, call.group_size)
        ]
        jobs = [(heads, blocks[i::stripes]) for heads in groups for i in range(stripes)]
        done = workers.run(self._work, jobs, n_workers if on_cpu else 0)
        by_heads = []
        for index, heads in enumerate(groups):
            first, *others = done[index * stripes : (index + 1) * stripes]
            for other in others:
                for part, rest in zip(first, other, strict=True):
                    part.merge(rest)
            sink = None if self.sink is None else self.sink[heads]
            mask = call.mask.of_heads(heads)
            rows = Rows(self.lse[heads], sink, mask)
            by_heads.append(tiled.finish(first, self.wanted, rows))
        arrays = {n: torch.cat([h[n] for h in by_heads])[None] for n in by_heads[0]}
        if any(isinstance(s, d.Edges) for s in self.wanted):
            arrays["edges"] = self._edge_mass()[None]
        if any(isinstance(s, d.Norms) for s in self.wanted):
            arrays |= tiled.norms(call)
        return arrays

    def _edge_mass(self) -> Float[Tensor, "head query edge"]:
        """The mass of each edge's targets together; NaN where a query has none."""
        sizes = [rows.shape[1] for rows in self.edges]
        edges = [
            mass.sum(-1).masked_fill((rows < 0).all(-1), torch.nan)
            for rows, mass in zip(
                self.edges, self.target_mass.split(sizes, -1), strict=True
            )
        ]
        if not edges:
            return self.lse.new_empty(*self.lse.shape, 0)
        blind = self.lse == -torch.inf
        return torch.stack(edges, -1).masked_fill(blind[..., None], torch.nan)

    def _work(self, job: tuple[slice, list[tuple[int, int]]]) -> list[Accumulator]:
        heads, blocks = job
        call = self.call
        kv_head = heads.start // call.group_size
        key = call.key[0, kv_head].to(call.dtype)
        value = call.value[0, kv_head].to(call.dtype)
        parts = tiled.accumulators(self.kinds, self.lse[heads], call.mask.key_length)
        size = max((q1 - q0 for q0, q1 in blocks), default=0)
        buffers = [key.new_empty(call.group_size * size * len(key)) for _ in range(2)]
        for q0, q1 in blocks:
            k0, k1 = call.mask.span(q0, q1)
            if k0 == k1:
                continue
            shape = call.group_size, q1 - q0, k1 - k0
            logits, weights = (
                b[: shape[0] * shape[1] * shape[2]].view(shape) for b in buffers
            )
            box = q0, q1, k0, k1
            block = Block(self.sample, heads, box, call.mask, key.device)
            hidden = self._scores(block, key[k0:k1], logits)
            norm = self._normalize(heads, q0, q1, logits, weights, hidden)
            for edit in self.edits:
                edit.change_weights(weights, block)
            as_scored = all(edit.keeps_softmax for edit in self.edits)
            flat = weights.flatten(0, 1) @ value[k0:k1]
            self.output[heads, q0:q1] = flat.view(shape[0], shape[1], -1)
            self._gather(heads, box, weights)
            if parts:
                known = any(isinstance(s, d.Entropy) for s in self.kinds)
                logs = logits.sub_(norm[..., None]) if known and as_scored else None
                tile = Tile(call.mask, *box, weights, logs, logits, log_unit=1.0)
                for part in parts:
                    part.update(tile)
        return parts

    def _scores(self, block: Block, key: Tensor, out: Tensor) -> bool:
        """Writes the logits; True when some row may see nothing."""
        call, score = self.call, self.call.score
        heads, box = block.heads, block.box
        q0, q1, k0, k1 = box
        query = call.query[0, heads, q0:q1].to(call.dtype) * score.scale
        torch.mm(query.flatten(0, 1), key.T, out=out.view(-1, k1 - k0))
        if score.softcap is not None:
            out.div_(score.softcap).tanh_().mul_(score.softcap)
        if score.position_bias is not None:
            own = heads if score.position_bias.shape[1] > 1 else slice(None)
            out.add_(score.position_bias[0, own, q0:q1, k0:k1])
        for edit in self.edits:
            edit.change_logits(out, block)
        hides = any(edit.hides for edit in self.edits)
        if hides:
            out.clamp_(min=_hidden(out.dtype))
        for a, b in call.mask.uncertain(*box):
            visible = call.mask.tile(q0, q1, a, b)
            if visible is not None:
                own = visible[0] if visible.shape[1] == 1 else visible[0, heads]
                hidden = ~own.to(out.device)
                out[..., a - k0 : b - k0].masked_fill_(hidden, _hidden(out.dtype))
        return hides or call.mask.may_be_blind(q0, q1)

    def _normalize(
        self,
        heads: slice,
        q0: int,
        q1: int,
        logits: Tensor,
        weights: Tensor,
        may_be_blind: bool,
    ) -> Float[Tensor, "head query"]:
        """Writes the weights and the lse; what to subtract from a logit for its log."""
        torch.softmax(logits, -1, out=weights)
        largest = logits.amax(-1)
        lse = largest - weights.amax(-1).log()
        if may_be_blind:
            blind = largest <= _hidden(logits.dtype) / 2
            weights.masked_fill_(blind[..., None], 0.0)
            lse.masked_fill_(blind, -torch.inf)
        self.lse[heads, q0:q1] = lse
        if self.sink is None:
            return lse.nan_to_num(neginf=0.0)
        sink = self.sink[heads, None]
        share = torch.sigmoid(lse - sink)
        weights.mul_(share[..., None])
        return torch.logaddexp(lse, sink)

    def _gather(
        self, heads: slice, box: tuple[int, int, int, int], weights: Tensor
    ) -> None:
        """Weights at the targets of each edge."""
        q0, q1, k0, k1 = box
        if self.targets.shape[1] == 0:
            return
        targets = self.targets[q0:q1] - k0
        index = targets.clamp(0, k1 - k0 - 1).expand(len(weights), -1, -1)
        inside = (targets >= 0) & (targets < k1 - k0)
        self.target_mass[heads, q0:q1] = weights.gather(2, index) * inside


def _hidden(dtype: torch.dtype) -> float:
    """Logit of a pair that does not exist: finite, so that 0 * it is 0."""
    return torch.finfo(dtype).min / 4
