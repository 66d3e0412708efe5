"""The statistics of one attention call on the GPU: what to launch, and the rest.

Rows and columns come from one pass with keys at rest (`triton_columns`); rows alone,
and all rows where torch is told to be deterministic, from one with queries at rest
(`triton_rows`), without atomics; single pairs are gathered (`triton_pairs`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels import tiled
from interp.kernels.availability import within_limits
from interp.kernels.row_maxima import numbers, places, unpack_places
from interp.kernels.rules import AttentionCall
from interp.kernels.stripes import Near
from interp.kernels.tiled import LOG2E
from interp.kernels.tiles import Rows
from interp.kernels.triton_launch import Launcher
from interp.kernels.triton_tables import COLUMNS, COLUMNS_AND_MAXIMA, FEW_ROWS
from interp.kernels.triton_tiles import LOWEST, NEVER

BY_ROW = {
    d.Entropy: "ENTROPY",
    d.Distance: "DISTANCE",
    d.ClippedDistance: "CLIPPED",
    d.LocalMass: "LOCAL",
}
"""Sums over the keys of a row, and what the programs call them."""

NO_ROWS = dict.fromkeys(BY_ROW.values(), -1)
"""Places where no row sum is wanted."""

BY_COLUMN = {
    d.Received: "RECEIVED",
    d.ReceivedMax: "RECEIVED_MAX",
    d.FutureInfluence: "FUTURE",
}
"""Sums and maxima over the queries of a key."""

BY_PAIR = (d.Lse, d.LearnedSink, d.MaxMass, d.SinkMass, d.FirstMass, d.Edges)
"""What follows from the norm, or from pairs that are known by name."""


def statistics(
    call: AttentionCall,
    wanted: Sequence[d.Statistic],
    lse: Float[Tensor, "batch head query"] | None = None,
) -> dict[str, Tensor]:
    """The wanted statistics' arrays, `[batch, head, ...]` by name.

    Args:
        call: Of one sample, on a CUDA device (or under Triton's interpreter).
        wanted: Computed together.
        lse: Row log-sum-exp in nats, learned sink excluded; a pass of its own if None.

    Raises:
        KernelUnavailableError: The device has too little memory, or too small cores.
    """
    with within_limits(call, instead="tiled"):
        work = _Work(call, lse)
        own = {type(s): s for s in wanted if work.can(s)}
        arrays = work.run(own)
        for late in (s for s in wanted if isinstance(s, d.ReceivedLate)):
            arrays |= _received_late(call, late, work.lse)
        others = [s for s in wanted if s.name not in arrays]
        if others:
            arrays |= tiled.statistics(call, others, work.lse[None])
    return {array.name: arrays[array.name] for s in wanted for array in s.arrays}


@dataclass(frozen=True)
class _Gather:
    """Weights on keys that are known by name.

    Attributes:
        statistic: Whose array they are.
        keys: Of each edge, -1 for none; one row of keys is for all queries.
        masses: Sums over the keys of a row.
    """

    statistic: d.Statistic
    keys: list[Int[Tensor, "#query _"]]
    masses: Float[Tensor, "edge head query"]


class _Work(Launcher):
    """One call of one sample, with the norm of its rows."""

    def __init__(self, call: AttentionCall, lse: Tensor | None) -> None:
        super().__init__(call)
        sink = call.score.sink_logits
        self.sink = None if sink is None else sink.to(self.device, torch.float32)
        norm = self._log_sum_exp() if lse is None else lse[0].double().mul_(LOG2E)
        self.lse = norm.div(LOG2E).float() if lse is None else lse[0].float()
        self.blind = self.lse == -torch.inf
        if self.sink is not None:
            sink = self.sink.double()[:, None] * LOG2E
            norm = torch.logaddexp2(norm.double(), sink)
        # Rounded once: every weight of the row inherits the error.
        norm = norm.float().contiguous()
        self.norm = norm.masked_fill_(self.blind, NEVER.value)

    def can(self, statistic: d.Statistic) -> bool:
        """Whether a program computes it; the rest is left to `tiled`."""
        if isinstance(statistic, d.BlockMap):
            part = self.block_part(statistic.size, self.sizes_of(COLUMNS))
            one_writer = part == statistic.size
            return statistic.size % 16 == 0 and (one_writer or not _deterministic())
        if isinstance(statistic, d.TopKeys):
            return self.call.mask.query_length <= FEW_ROWS
        return isinstance(statistic, (*BY_PAIR, *BY_ROW, *BY_COLUMN))

    def run(self, wanted: dict[type[d.Statistic], d.Statistic]) -> dict[str, Tensor]:
        """The arrays, `[1, head, ...]` by name."""
        mask, n_heads = self.call.mask, self.call.n_heads
        rows = [kind for kind in BY_ROW if kind in wanted]
        columns = [kind for kind in BY_COLUMN if kind in wanted]
        blocks, maximum = wanted.get(d.BlockMap), d.MaxMass in wanted
        row_sums = self.norm.new_zeros(len(rows), *self.norm.shape)
        column_sums = self.norm.new_zeros(len(columns), n_heads, mask.key_length)
        size = 0 if blocks is None else blocks.parameters["size"]
        maps = self.norm.new_zeros(2, n_heads, *self.blocks(size))
        best = self.row_maxima() if maximum else None
        row_places = _places(BY_ROW, rows)
        column_places = _places(BY_COLUMN, columns)
        near = Near.of(wanted)
        gathers = self._gathers(wanted)
        with_rows, with_columns = bool(rows or maximum), bool(columns or blocks)
        # Few queries leave nothing to share among programs but the keys.
        by_keys = with_columns or mask.query_length <= FEW_ROWS
        alone = with_rows and (_deterministic() or not by_keys)
        if with_columns or not alone:
            self.sizes = self.sizes_of(COLUMNS_AND_MAXIMA if maximum else COLUMNS)
        for stripe in self.stripes():
            if alone:
                self.rows(stripe, near, row_sums, best, row_places)
            if with_columns or (with_rows and not alone):
                self.columns(
                    stripe,
                    near,
                    row_sums,
                    None if alone else best,
                    column_sums,
                    maps,
                    size,
                    (NO_ROWS if alone else row_places) | column_places,
                )
            if best is not None:
                self.find_keys(stripe, best)
            for gather in gathers:
                for keys, mass in zip(gather.keys, gather.masses, strict=True):
                    own = keys if len(keys) == 1 else keys[stripe.q0 : stripe.q1]
                    self.pairs(stripe, own, mass)
        arrays = self._finished_rows(wanted, rows, row_sums)
        arrays |= self._finished_columns(wanted, columns, column_sums)
        if best is not None:
            arrays |= self._finished_maximum(best)
        if blocks is not None:
            pairs = mask.pairs_per_block(size)[0]
            arrays["block_mean"] = maps[0].div_(pairs)
            arrays["block_max"] = maps[1].masked_fill_(pairs == 0, torch.nan)
        if d.TopKeys in wanted:
            arrays |= self._top_keys(wanted[d.TopKeys].parameters["k"])
        arrays |= self._finished_gathers(gathers)
        arrays |= self._finished_norm(wanted)
        return {name: values[None] for name, values in arrays.items()}

    def _log_sum_exp(self) -> Float[Tensor, "head query"]:
        """In base 2."""
        shape = self.n_parts(), self.call.n_heads, self.call.mask.query_length
        out = torch.full(shape, -torch.inf, device=self.device)
        self.norm = out[0]
        for stripe in self.stripes():
            self.rows(stripe, Near(), out, None, NO_ROWS, lse=True)
        if len(out) == 1:
            return out[0]
        return out.double().mul_(1 / LOG2E).logsumexp(0).mul_(LOG2E).float()

    def _gathers(self, wanted: dict[type[d.Statistic], d.Statistic]) -> list[_Gather]:
        """Where to look for the weights of single pairs, and room for them."""
        gathers = []
        for statistic in wanted.values():
            if isinstance(statistic, d.Edges):
                edges = statistic.resolve(self.call.mask, self.device)
                keys = [targets[0] for targets in edges]
            elif isinstance(statistic, (d.SinkMass, d.FirstMass)):
                keys = [self._first_keys(statistic.parameters.get("first", 1))]
            else:
                continue
            keys = [targets.int().contiguous() for targets in keys]
            masses = self.norm.new_empty(len(keys), *self.norm.shape)
            gathers.append(_Gather(statistic, keys, masses))
        return gathers

    def _first_keys(self, count: int) -> Tensor:
        mask = self.call.mask
        start = mask.start - mask.key_offset
        keys = torch.arange(start, start + count, device=self.device)
        return keys.masked_fill_(keys >= mask.key_length, -1)[None]

    def _top_keys(self, k: int) -> dict[str, Tensor]:
        """NaN and -1 where a row sees fewer keys."""
        packed = self.top_keys(k)
        missing = packed == LOWEST.value
        mass = numbers(packed).exp2_().masked_fill_(missing, torch.nan)
        key = places(packed).long().masked_fill_(missing, -1)
        return {"top_mass": mass, "top_key": key}

    def _finished_rows(
        self, wanted: dict[type, d.Statistic], kinds: list[type], sums: Tensor
    ) -> dict[str, Tensor]:
        """Units and constants that the programs leave out."""
        sums.masked_fill_(self.blind, torch.nan)
        arrays = {}
        for kind, values in zip(kinds, sums, strict=True):
            if kind is d.Entropy:
                values.mul_(-math.log(2))
            arrays[wanted[kind].name] = values
        return arrays

    def _finished_columns(
        self, wanted: dict[type, d.Statistic], kinds: list[type], sums: Tensor
    ) -> dict[str, Tensor]:
        """Sums over the queries that see the key; NaN where none does."""
        mask, arrays = self.call.mask, {}
        for kind, values in zip(kinds, sums, strict=True):
            own = wanted[kind].parameters
            counts = mask.queries_per_key(own.get("near"), own.get("far"))[0]
            if kind is d.ReceivedMax:
                values.masked_fill_(counts == 0, torch.nan)
            else:
                values.div_(counts)
            arrays[wanted[kind].name] = values
        return arrays

    def _finished_gathers(self, gathers: list[_Gather]) -> dict[str, Tensor]:
        """NaN where a row sees nothing, or an edge has no key in it."""
        arrays = {}
        for gather in gathers:
            masses = gather.masses.masked_fill_(self.blind, torch.nan)
            if isinstance(gather.statistic, d.Edges):
                for mass, keys in zip(masses, gather.keys, strict=True):
                    mass.masked_fill_((keys < 0).all(-1), torch.nan)
                arrays[gather.statistic.name] = masses.movedim(0, -1)
            else:
                arrays[gather.statistic.name] = masses[0]
        return arrays

    def _finished_norm(self, wanted: dict[type, d.Statistic]) -> dict[str, Tensor]:
        """What follows from the norm alone."""
        plain = [s for s in wanted.values() if isinstance(s, (d.Lse, d.LearnedSink))]
        return tiled.finish([], plain, Rows(self.lse, self.sink, self.call.mask))

    def _finished_maximum(self, best: Tensor) -> dict[str, Tensor]:
        mass = numbers(best).exp2_().masked_fill_(self.blind, torch.nan)
        key = unpack_places(best).masked_fill_(self.blind, -1)
        return {"max_mass": mass, "max_key": key}


def _received_late(
    call: AttentionCall, statistic: d.ReceivedLate, lse: Float[Tensor, "head query"]
) -> dict[str, Tensor]:
    """What the keys of a call receive from its last queries: a call of those alone."""
    rule = d.late(call.mask, statistic.last)
    first = call.mask.query_length - rule.query_length
    part = replace(call.rows(first, call.mask.query_length), mask=rule)
    received = _Work(part, lse[None, :, first:]).run({d.Received: d.Received()})
    return {statistic.name: received["received"]}


def _places(names: dict[type, str], kinds: list[type]) -> dict[str, int]:
    """Where each statistic is summed, -1 for those that are not wanted."""
    return {
        name: kinds.index(kind) if kind in kinds else -1 for kind, name in names.items()
    }


def _deterministic() -> bool:
    """Whether torch was told to give the same bits in every run."""
    return torch.are_deterministic_algorithms_enabled()
