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
from interp.kernels import row_blocks, tiled, workers
from interp.kernels.accumulators import KINDS, Accumulator
from interp.kernels.edits import Block, Edit
from interp.kernels.rules import AttentionCall
from interp.kernels.samples import scatter
from interp.kernels.tiles import Rows, Tile

FEWEST_ROWS = 16
"""Rows of a block below which two passes with fewer keys at a time are faster."""


def is_fastest(call: AttentionCall) -> bool:
    """True where one pass over row blocks beats a fused kernel and a second pass."""
    width = call.group_size * max(call.mask.key_length, 1)
    rows = row_blocks.ELEMENTS["cpu"] // width
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
        jobs, n_workers = row_blocks.jobs(self.call)
        done = workers.run(self._work, jobs, n_workers)
        stripes = sum(heads == jobs[0][0] for heads, _ in jobs)
        by_heads = []
        for index in range(0, len(jobs), stripes):
            heads = jobs[index][0]
            first, *others = done[index : index + stripes]
            for other in others:
                for part, rest in zip(first, other, strict=True):
                    part.merge(rest)
            sink = None if self.sink is None else self.sink[heads]
            rows = Rows(self.lse[heads], sink, self.call.mask.of_heads(heads))
            by_heads.append(tiled.finish(first, self.wanted, rows))
        arrays = {n: torch.cat([h[n] for h in by_heads])[None] for n in by_heads[0]}
        if any(isinstance(s, d.Edges) for s in self.wanted):
            arrays["edges"] = self._edge_mass()[None]
        if any(isinstance(s, d.Norms) for s in self.wanted):
            arrays |= tiled.norms(self.call)
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

    def _work(self, job: row_blocks.Job) -> list[Accumulator]:
        heads, blocks = job
        call = self.call
        kv_heads = row_blocks.keys_of(call, heads)
        key = call.key[0, kv_heads].to(call.dtype)
        value = call.value[0, kv_heads].to(call.dtype)
        parts = tiled.accumulators(self.kinds, self.lse[heads], call.mask.key_length)
        size = max((q1 - q0 for q0, q1 in blocks), default=0)
        n_heads = heads.stop - heads.start
        buffers = [key.new_empty(n_heads * size * key.shape[1]) for _ in range(2)]
        for q0, q1 in blocks:
            k0, k1 = call.mask.span(q0, q1)
            if k0 == k1:
                continue
            shape = n_heads, q1 - q0, k1 - k0
            logits, weights = (
                b[: shape[0] * shape[1] * shape[2]].view(shape) for b in buffers
            )
            box = q0, q1, k0, k1
            block = Block(self.sample, heads, box, call.mask, key.device)
            may_be_blind = self._scores(block, key[:, k0:k1], logits)
            sinks = None if self.sink is None else self.sink[heads]
            lse = row_blocks.normalize(logits, sinks, may_be_blind, weights)
            self.lse[heads, q0:q1] = lse
            for edit in self.edits:
                edit.change_weights(weights, block)
            as_scored = all(edit.keeps_softmax for edit in self.edits)
            of_groups = weights.view(len(key), -1, k1 - k0) @ value[:, k0:k1]
            self.output[heads, q0:q1] = of_groups.view(*shape[:2], -1)
            self._gather(heads, box, weights)
            if parts:
                known = any(isinstance(s, d.Entropy) for s in self.kinds)
                logs = None
                if known and as_scored:
                    logs = logits.sub_(self._norm(heads, lse)[..., None])
                tile = Tile(call.mask, *box, weights, logs, logits, log_unit=1.0)
                for part in parts:
                    part.update(tile)
        return parts

    def _scores(self, block: Block, key: Tensor, out: Tensor) -> bool:
        """Writes the logits; True when some row may see nothing."""
        row_blocks.products(self.call, block, key, out)
        if self.call.score.position_bias is not None:
            out.add_(row_blocks.of_pairs(self.call.score.position_bias, block))
        for edit in self.edits:
            edit.change_logits(out, block)
        return row_blocks.hide(block, out, self.edits)

    def _norm(
        self, heads: slice, lse: Float[Tensor, "head query"]
    ) -> Float[Tensor, "head query"]:
        """What to subtract from a logit for the logarithm of its weight."""
        if self.sink is None:
            return lse.nan_to_num(neginf=0.0)
        return torch.logaddexp(lse, self.sink[heads, None])

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
