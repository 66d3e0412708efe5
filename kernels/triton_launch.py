"""Launches the GPU programs over the queries and keys of one attention call.

Linear memory: a rule that is no range of keys is handed over pair by pair, for as many
queries at a time as fit.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from interp.kernels.intervals import Intervals, Ranges, intervals, ranges
from interp.kernels.row_maxima import ByBlock, places
from interp.kernels.rules import AttentionCall
from interp.kernels.stripes import Near, Stripe
from interp.kernels.tiled import LOG2E
from interp.kernels.triton_columns import columns_program
from interp.kernels.triton_maxima import maxima_program
from interp.kernels.triton_operands import Operand, power_of_two
from interp.kernels.triton_pairs import pairs_program
from interp.kernels.triton_rows import rows_program
from interp.kernels.triton_tables import (
    COLUMNS,
    FEW_ROWS,
    ROWS,
    TileSizes,
    tile_sizes,
)
from interp.kernels.triton_tiles import LOWEST
from interp.kernels.triton_top_keys import top_keys_program

# Triton's types know nothing of launches.
_rows_program: Any = rows_program
_columns_program: Any = columns_program
_pairs_program: Any = pairs_program
_maxima_program: Any = maxima_program
_top_keys_program: Any = top_keys_program

MASK_BYTES = 1 << 25
"""Of a mask that is handed over pair by pair, at a time."""

FAR_AWAY = -(2**31)
"""Reach of nothing."""

PROGRAMS = 256
"""That keep a device busy: with fewer, the keys are split."""

TILES_OF_A_PART = 8
"""Tiles of keys that are worth a program of their own, at least."""

PAIR_ROWS = 32
"""Queries of a program that looks at single pairs."""

ROWS_OF_A_BLOCK = 64
"""Queries of a program that looks at a few keys that they share."""

MOST_SHARED = 64
"""Targets of all queries that are looked at as a tile."""

SORTED_ROWS = 1 << 19
"""Rows that are brought in the order of their blocks together: some 20 MiB."""


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

    @property
    def precision(self) -> str:
        """How products of single precision are made."""
        return "tf32x3" if self.call.query.dtype == torch.float32 else "ieee"

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

    def n_parts(self) -> int:
        """In how many parts to take the keys, so that few queries fill the device."""
        mask, sizes = self.call.mask, self.sizes
        n_tiles = -(-mask.query_length // sizes.rows) * self.call.n_heads
        most = -(-mask.key_length // sizes.keys) // TILES_OF_A_PART
        return max(min(-(-PROGRAMS // n_tiles), most), 1)

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
        """Adds the stripe's row sums, and its maxima where there is room for them.

        With `lse`, a place is a part of the keys.
        """
        found, arguments = self._tiles(stripe, near.reach)
        n_parts = len(sums) if lse else 1
        for how in self._passes(stripe):
            _rows_program[len(found.of_queries), self.call.n_heads, n_parts](
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
        n_queries, n_targets = stripe.q1 - stripe.q0, keys.shape[-1]
        own = len(keys) > 1 or n_targets > MOST_SHARED
        rows = PAIR_ROWS if own else ROWS_OF_A_BLOCK
        _pairs_program[-(-n_queries // rows), self.call.n_heads](
            **self._rule(stripe),
            **self._in_place(stripe),
            targets=keys,
            target_query=keys.stride(0) if len(keys) > 1 else 0,
            n_targets=n_targets,
            out=out[:, stripe.q0 :],
            ROWS=rows,
            SHARED=0 if own else max(power_of_two(n_targets), 16),
            TF32=self.precision,
        )

    def find_keys(self, stripe: Stripe, best: Int[Tensor, "head query"]) -> None:
        """Turns the block of each row's maximum into its key."""
        rule = self._rule(stripe)
        del rule["norm"]
        n_queries = stripe.q1 - stripe.q0
        n_blocks = -(-self.call.mask.key_length // self.sizes.keys)
        n_heads = max(SORTED_ROWS // n_queries, 1)
        for first in range(0, self.call.n_heads, n_heads):
            own = best[first : first + n_heads, stripe.q0 : stripe.q1]
            found = ByBlock.of(own, n_blocks, ROWS_OF_A_BLOCK)
            _maxima_program[found.block_of_tile.shape[::-1]](
                **rule,
                **self._in_place(stripe),
                **vars(found),
                best=best[:, stripe.q0 :],
                n_tiles=found.block_of_tile.shape[1],
                n_blocks=n_blocks,
                first_head=first,
                M=ROWS_OF_A_BLOCK,
                N=self.sizes.keys,
                TF32=self.precision,
            )

    def top_keys(self, k: int) -> Int[Tensor, "head query rank"]:
        """Logits and keys of the k largest pairs of few rows, as `placed` packs them.

        `LOWEST` where a row sees fewer keys. On ties the first key comes first.
        """
        self.sizes = self.sizes_of(COLUMNS)
        (stripe,) = self.stripes()  # few rows, even with a mask of their own
        _, arguments = self._tiles(stripe, None)
        shape = self.norm.shape
        n_blocks = -(-self.call.mask.key_length // self.sizes.keys)
        pairs = self._top(arguments, None, (*shape, n_blocks))
        best = pairs.topk(min(k, n_blocks)).values
        chosen = places(best).clamp_(0, n_blocks - 1)
        pairs = self._top(arguments, chosen, (*chosen.shape, self.sizes.keys))
        none = best == LOWEST.value
        found = pairs.masked_fill_(none[..., None], LOWEST.value).flatten(2)
        found = found.topk(min(k, found.shape[2])).values
        return pad(found, (0, k - found.shape[2]), value=LOWEST.value)

    def _top(
        self, arguments: dict[str, Any], chosen: Tensor | None, shape: tuple[int, ...]
    ) -> Tensor:
        out = torch.empty(shape, dtype=torch.int64, device=self.device)
        n_heads, n_queries, n_blocks = shape[:3]
        rows = 1 if chosen is None else n_queries
        _top_keys_program[n_heads, n_blocks, rows](
            **arguments,
            chosen=out if chosen is None else chosen,
            out=out,
            CHOSEN=chosen is not None,
        )
        return out

    def _in_place(self, stripe: Stripe) -> dict[str, Any]:
        """Arguments of programs that read queries and keys one by one."""
        query, key = self.query.rows(stripe.q0, stripe.q1).values, self.key.values
        width = query.shape[-1]
        return {
            "queries": query,
            "query_head": query.stride(0),
            "query_token": query.stride(1),
            "keys": key,
            "key_head": key.stride(0),
            "key_token": key.stride(1),
            "WIDTH": width,
            "PADDED": max(power_of_two(width), 16),
        }

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
            "TF32": self.precision,
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
