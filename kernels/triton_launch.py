"""Launches the GPU programs over the queries and keys of one attention call.

Linear memory: a rule that is no range of keys is handed over pair by pair, for as many
queries at a time as fit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels.intervals import Intervals, Ranges, intervals, ranges
from interp.kernels.rules import AttentionCall
from interp.kernels.tiled import LOG2E
from interp.kernels.triton_columns import columns_program
from interp.kernels.triton_operands import Operand, power_of_two
from interp.kernels.triton_pairs import pairs_program
from interp.kernels.triton_rows import rows_program
from interp.kernels.triton_tables import FEW_ROWS, ROWS, TileSizes, tile_sizes
from interp.kernels.triton_tiles import LOWEST

# Triton's types know nothing of launches.
_rows_program: Any = rows_program
_columns_program: Any = columns_program
_pairs_program: Any = pairs_program

MASK_BYTES = 1 << 25
"""Of a mask that is handed over pair by pair, at a time."""

FAR_AWAY = -(2**31)
"""Reach of nothing."""

NEAR = 128
"""Distances below this are not told as a difference of two larger ones."""

PAIR_ROWS = 32
"""Queries of a program that looks at single pairs."""


@dataclass(frozen=True)
class Stripe:
    """Some queries, the ranges of keys they see, and their mask if that is no range."""

    q0: int
    q1: int
    shown: Intervals
    mask: Tensor | None


@dataclass(frozen=True)
class Near:
    """What matters pair by pair near the diagonal, in tokens."""

    clip: int = 0
    window: int = 0
    nearest: int = 0
    farthest: int = -1
    distance: bool = False

    @classmethod
    def of(cls, wanted: Mapping[type[d.Statistic], d.Statistic]) -> "Near":
        """From the statistics that are wanted."""
        asked = {kind: statistic.parameters for kind, statistic in wanted.items()}
        future = asked.get(d.FutureInfluence, {"near": 0, "far": -1})
        return cls(
            clip=asked.get(d.ClippedDistance, {}).get("clip", 0),
            window=asked.get(d.LocalMass, {}).get("window", 0),
            nearest=future["near"],
            farthest=future["far"],
            distance=d.Distance in wanted,
        )

    @property
    def reach(self) -> int | None:
        """Pairs nearer than this matter one by one; None where none do."""
        least = NEAR if self.distance else 0
        return max(self.clip, self.window, self.farthest + 1, least) or None


class Launcher:
    """One call of one sample, the norm of its rows once known, and the tiles to use."""

    norm: Float[Tensor, "head query"]

    def __init__(self, call: AttentionCall) -> None:
        self.device = call.query.device
        if call.score.scale < 0:  # the largest product has to be the largest logit
            score = replace(call.score, scale=-call.score.scale)
            call = replace(call, query=-call.query, score=score)
        self.call = replace(call, mask=call.mask.on(self.device))
        self.query, self.key = Operand.of(call.query[0]), Operand.of(call.key[0])
        self.sizes = self.sizes_of(ROWS)

    def sizes_of(self, table: dict[int, TileSizes]) -> TileSizes:
        """Tile sizes of this call, by the table of a program."""
        n_queries, dtype = self.call.mask.query_length, self.call.query.dtype
        on_gpu = self.device.type == "cuda"
        is_hopper = not on_gpu or torch.cuda.get_device_capability(self.device)[0] > 8
        return tile_sizes(table, n_queries, self.query.width, dtype, is_hopper)

    def stripes(self) -> Iterator[Stripe]:
        """All queries at once where the rule is ranges, else as many as a mask fits."""
        mask = self.call.mask
        shown = intervals(mask, self.device)
        if shown is not None:
            yield Stripe(0, mask.query_length, shown, None)
            return
        band = intervals(replace(mask, function=None, dense=None), self.device)
        assert band is not None, "a band is a range of keys"
        mask_heads = 1 if mask.dense is None else mask.dense.shape[1]
        rows = MASK_BYTES // max(mask_heads * mask.key_length, 1)
        rows = max(rows // 128 * 128, 128)
        for q0 in range(0, mask.query_length, rows):
            q1 = min(q0 + rows, mask.query_length)
            visible = mask.tile(q0, q1, 0, mask.key_length)
            assert visible is not None, "there is more to this rule than a band"
            own = Intervals(band.low[q0:q1], band.high[q0:q1], band.seen)
            bits = visible[0].to(self.device, torch.uint8).contiguous()
            yield Stripe(q0, q1, own, bits)

    def blocks(self, size: int) -> tuple[int, int]:
        """Rows and columns of a block map; one of each where none is wanted."""
        lengths = self.call.mask.query_length, self.call.mask.key_length
        rows, columns = (-(-length // size) if size else 1 for length in lengths)
        return rows, columns

    def block_part(self, size: int, sizes: TileSizes) -> int:
        """Side of the parts that a tile adds to a block map: a power of two."""
        return min(size & -size, sizes.rows, sizes.keys) if size else 0

    def row_maxima(self) -> Int[Tensor, "head query"]:
        """Room for what `place_maximum` finds."""
        return torch.full_like(self.norm, LOWEST.value, dtype=torch.int64)

    def rows(
        self,
        stripe: Stripe,
        near: Near,
        sums: Float[Tensor, "place head query"],
        best: Int[Tensor, "head query"] | None,
        places: dict[str, int],
        *,
        lse: bool = False,
    ) -> None:
        """Adds the stripe's row sums, and its maxima where there is room for them."""
        found, arguments = self._tiles(stripe, near.reach)
        for how in self._passes(stripe):
            _rows_program[len(found.of_queries), self.call.n_heads](
                **arguments,
                **self._distances(stripe, near),
                **how,
                **places,
                ranges=found.of_queries,
                rows_out=sums[:, :, stripe.q0 :],
                best_out=sums if best is None else best[:, stripe.q0 :],
                LSE=lse,
                MAXIMUM=best is not None,
            )

    def columns(
        self,
        stripe: Stripe,
        near: Near,
        row_sums: Float[Tensor, "place head query"],
        best: Int[Tensor, "head query"] | None,
        sums: Float[Tensor, "column_place head key"],
        maps: Float[Tensor, "kind head row column"],
        size: int,
        places: dict[str, int],
    ) -> None:
        """Adds the stripe's column sums, block maps, and row sums beside them."""
        found, arguments = self._tiles(stripe, near.reach)
        grid = len(found.of_keys), self.call.n_heads
        is_decoding = stripe.q1 - stripe.q0 <= FEW_ROWS
        for how in self._passes(stripe):
            _columns_program[grid[::-1] if is_decoding else grid](
                **arguments,
                **self._distances(stripe, near),
                **how,
                **places,
                ranges=found.of_keys,
                rows_out=row_sums[:, :, stripe.q0 :],
                best_out=row_sums if best is None else best[:, stripe.q0 :],
                columns_out=sums,
                blocks_out=maps[0],
                blocks_largest=maps[1],
                reach=FAR_AWAY if near.reach is None else near.reach,
                nearest=near.nearest,
                farthest=near.farthest,
                size=max(size, 1),
                query_base=stripe.q0,
                HEADS_FIRST=is_decoding,
                WARPS=how["num_warps"],
                MAXIMUM=best is not None,
                BLOCKS=self.block_part(size, self.sizes),
            )

    def pairs(
        self,
        stripe: Stripe,
        keys: Int[Tensor, "rows target"],
        out: Float[Tensor, "head query"],
    ) -> None:
        """Writes each row's weight on its target keys; one row of keys is for all."""
        self._gather(stripe, keys, keys.stride(0) if len(keys) > 1 else 0, out, 0)

    def find_keys(self, stripe: Stripe, best: Int[Tensor, "head query"]) -> None:
        """Turns the place of each row's maximum into its key."""
        self._gather(stripe, best[:, stripe.q0 :], 0, best, self.sizes.keys)

    def _gather(
        self, stripe: Stripe, keys: Tensor, step: int, out: Tensor, search: int
    ) -> None:
        query, key = self.query.rows(stripe.q0, stripe.q1).values, self.key.values
        width = query.shape[-1]
        _pairs_program[-(-(stripe.q1 - stripe.q0) // PAIR_ROWS), self.call.n_heads](
            **self._rule(stripe),
            queries=query,
            query_head=query.stride(0),
            query_token=query.stride(1),
            keys=key,
            key_head=key.stride(0),
            key_token=key.stride(1),
            targets=keys,
            target_query=step,
            n_targets=keys.shape[-1],
            out=out[:, stripe.q0 :],
            WIDTH=width,
            PADDED=max(power_of_two(width), 16),
            ROWS=PAIR_ROWS,
            SEARCH=search,
        )

    def _tiles(
        self, stripe: Stripe, reach: int | None
    ) -> tuple[Ranges, dict[str, Any]]:
        """Ranges of tiles, and what every program that streams them is told."""
        mask, sizes = self.call.mask, self.sizes
        own = mask if stripe.mask is None else mask.rows(stripe.q0, stripe.q1)
        block = sizes.rows, sizes.keys
        found = ranges(own, stripe.shown, block, reach, self._plain(stripe))
        query = self.query.rows(stripe.q0, stripe.q1)
        queries, queries_rest = query.tiles(sizes.rows)
        keys, keys_rest = self.key.tiles(sizes.keys)
        return found, {
            **self._rule(stripe),
            "queries": queries,
            "queries_rest": queries_rest,
            "keys": keys,
            "keys_rest": keys_rest,
            "query_step": query.step,
            "key_step": self.key.step,
            "n_heads": self.call.n_heads,
            "M": sizes.rows,
            "N": sizes.keys,
            "D": query.main,
            "REST": query.rest,
            "TF32": "tf32x3" if self.call.query.dtype == torch.float32 else "ieee",
        }

    def _distances(self, stripe: Stripe, near: Near) -> dict[str, int]:
        """Arguments that say how far apart pairs are, and what matters of it."""
        mask = self.call.mask
        shift = mask.query_offset + stripe.q0 - mask.key_offset
        return {"shift": shift, "clip": near.clip, "window": near.window}

    def _plain(self, stripe: Stripe) -> bool:
        """Whether some pairs need no look of their own."""
        return stripe.mask is None and self.call.score.position_bias is None

    def _passes(self, stripe: Stripe) -> Iterator[dict[str, Any]]:
        """First the wholly visible tiles, if there can be any, then the rest."""
        sizes = self.sizes
        if self._plain(stripe):
            yield {"EDGE": False, "num_warps": sizes.warps, "STAGES": sizes.stages}
        yield {"EDGE": True, "num_warps": sizes.edge_warps, "STAGES": 1}

    def _rule(self, stripe: Stripe) -> dict[str, Any]:
        """Arguments that say which pairs exist, and how products become logits."""
        call, score, mask = self.call, self.call.score, stripe.mask
        bias, cap, seen = score.position_bias, score.softcap, stripe.shown.seen
        unused = self.norm
        strides = (0, 0, 0)
        if bias is not None:
            bias = bias[0, :, stripe.q0 : stripe.q1]
            strides = (bias.stride(0) * (len(bias) > 1), bias.stride(1), bias.stride(2))
        mask_head = 0 if mask is None or len(mask) == 1 else mask.stride(0)
        return {
            "group": call.group_size,
            "norm": self.norm[:, stripe.q0 :],
            "low": stripe.shown.low,
            "high": stripe.shown.high,
            "seen": unused if seen is None else seen.view(torch.uint8),
            "mask": unused if mask is None else mask,
            "mask_head": mask_head,
            "mask_query": 0 if mask is None else mask.stride(1),
            "bias": unused if bias is None else bias,
            "bias_head": strides[0],
            "bias_query": strides[1],
            "bias_key": strides[2],
            "n_queries": stripe.q1 - stripe.q0,
            "n_keys": call.mask.key_length,
            "row_stride": call.mask.query_length,
            "scale": score.scale * LOG2E if cap is None else score.scale / cap,
            "cap": 0.0 if cap is None else cap * LOG2E,
            "CAPPED": cap is not None,
            "HOLES": seen is not None,
            "MASKED": mask is not None,
            "BIASED": bias is not None,
        }
