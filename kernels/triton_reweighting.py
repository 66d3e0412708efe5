"""Launches the program of attention under a change, sample by sample."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.kernels.availability import within_limits
from interp.kernels.intervals import intervals
from interp.kernels.reweight import Reweight
from interp.kernels.rules import AttentionCall
from interp.kernels.stripes import Stripe
from interp.kernels.tiled import LOG2E
from interp.kernels.triton_attention import attention_program
from interp.kernels.triton_launch import Launcher
from interp.kernels.triton_operands import Operand
from interp.kernels.triton_tables import (
    ATTENTION,
    ATTENTION_IN_SINGLE,
    FEW_ROWS,
    KEYS_OF_FEW_ROWS,
    TileSizes,
)

# Triton's types know nothing of launches.
_attention_program: Any = attention_program

FEWEST = 16
"""Queries and keys of a tile, at least."""

LOOKED_AT = 32
"""Keys of a tile, at most, where every pair has something of its own."""


def attend(
    call: AttentionCall, reweight: Reweight
) -> tuple[
    Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]
]:
    """Output, and log-sum-exp in nats: see `reweighting.reweighted`.

    Raises:
        KernelUnavailableError: The device has too little memory, or too small cores.
    """
    shape = call.query.shape[:3]
    with within_limits(call, instead="torch"):
        output = call.value.new_zeros(*shape, call.value.shape[3])
        lse = output.new_full(shape, -torch.inf, dtype=torch.float32)
        for sample, queries, keys in call.samples():
            # Whole blocks, so that tiles lie in one block each: padding costs less.
            own = sample, _whole(queries, reweight, 0), _whole(keys, reweight, 1)
            work = _Attention(call.narrow(*own), reweight.narrow(*own))
            lse[sample, :, own[1]] = work.run(output[sample, :, own[1]])
    return output, lse


def _whole(tokens: slice, reweight: Reweight, axis: int) -> slice:
    """From the beginning of a block on."""
    within = (reweight.first[axis] + tokens.start) % (reweight.size or 1)
    return slice(max(tokens.start - within, 0), tokens.stop)


@dataclass(frozen=True)
class _Kept:
    """Blocks that are not dropped.

    Attributes:
        blocks: Key blocks of each row, the kept ones first.
        before: How many kept blocks of the row lie before each block, and in all.
    """

    blocks: Int[Tensor, "#head query_block key_block"]
    before: Int[Tensor, "#head query_block key_block+1"]

    @classmethod
    def of(cls, keep: Bool[Tensor, "#head query_block key_block"]) -> "_Kept":
        """From which blocks to keep; head by head, because places are long numbers."""
        blocks = [rows.logical_not().byte().argsort(stable=True).int() for rows in keep]
        before = keep.cumsum(-1, dtype=torch.int32)
        before = torch.nn.functional.pad(before, (1, 0))
        return cls(torch.stack(blocks), before)


class _Attention(Launcher):
    """One call of one sample, and what to change."""

    def __init__(self, call: AttentionCall, reweight: Reweight) -> None:
        super().__init__(call)
        self.reweight = reweight
        self.value = Operand.of(call.value[0])
        self.sizes, self.whole = _tile_sizes(self.call, reweight)

    def run(
        self, output: Float[Tensor, "head query d_value"]
    ) -> Float[Tensor, "head query"]:
        """Writes the output; the log-sum-exp in nats."""
        mask, n_heads = self.call.mask, self.call.n_heads
        n_parts = self.n_parts()
        kind = {"device": self.device, "dtype": torch.float32}
        shape = n_parts * n_heads, mask.query_length
        self.norm = torch.full(shape, -torch.inf, **kind)
        parts = output[None]
        if n_parts > 1:
            parts = torch.zeros(n_parts, *output.shape, **kind)
        changes = self._changes(unused=self.norm)
        for stripe in self.stripes():
            self._launch(stripe, parts, changes)
        lse = self.norm.mul_(math.log(2)).unflatten(0, (n_parts, n_heads))
        return lse[0] if n_parts == 1 else self._merge(parts, lse, output)

    def _merge(
        self,
        parts: Float[Tensor, "part head query d_value"],
        lse: Float[Tensor, "part head query"],
        output: Float[Tensor, "head query d_value"],
    ) -> Float[Tensor, "head query"]:
        whole = lse.logsumexp(0)
        sink = self.call.score.sink_logits
        norm = whole if sink is None else torch.logaddexp(whole, sink[:, None].float())
        share = (lse - norm).exp().masked_fill_(lse == -torch.inf, 0.0)
        output.copy_(parts.mul_(share[..., None]).sum(0))
        return whole

    def _launch(self, stripe: Stripe, parts: Tensor, changes: dict[str, Any]) -> None:
        found, arguments = self._tiles(stripe, None)
        values, values_rest = self.value.tiles(self.sizes.keys)
        sink = self.call.score.sink_logits if len(parts) == 1 else None
        grid = len(found.of_queries), self.call.n_heads, len(parts)
        _attention_program[grid](
            **arguments,
            **changes,
            values=values,
            values_rest=values_rest,
            value_step=self.value.step,
            ranges=found.of_queries,
            sinks=self.norm if sink is None else sink.contiguous(),
            first_query=self.reweight.first[0] + stripe.q0,
            first_key=self.reweight.first[1],
            out=parts[:, :, stripe.q0 :],
            out_part=parts.stride(0),
            out_head=parts.stride(1),
            out_query=parts.stride(2),
            value_width=self.value.width,
            V=self.value.main,
            V_REST=self.value.rest,
            STAGES=self.sizes.stages,
            PLAIN=self._plain(stripe),
            SINKS=sink is not None,
            num_warps=self.sizes.warps,
        )

    def _changes(self, unused: Tensor) -> dict[str, Any]:
        """Arguments that say what to change."""
        change = self.reweight
        scale = change.scale
        arguments: dict[str, Any] = {
            "head_scale": unused if scale is None else scale.contiguous(),
            "SCALED": scale is not None,
        }
        for name, unit in (("key_bias", LOG2E), ("key_factor", 1.0)):
            part, of_key = getattr(change, name), unused
            if part is not None:
                room = 0, -part.shape[2] % self.sizes.keys
                of_key = torch.nn.functional.pad(part[0].float() * unit, room)
            arguments |= {
                name: of_key.contiguous(),
                f"{name}_head": 0 if len(of_key) == 1 else of_key.shape[1],
                name.upper(): part is not None,
            }
        tiles = unused[None] if change.tile_bias is None else change.tile_bias[0]
        kept = _Kept.of(tiles > -torch.inf) if self.whole else None
        return arguments | {
            "tile_bias": tiles,
            "tile_head": 0 if len(tiles) == 1 else tiles.stride(0),
            "tile_query": tiles.stride(1),
            "tile_key": tiles.stride(2),
            "kept": unused if kept is None else kept.blocks,
            "kept_before": unused if kept is None else kept.before,
            "kept_head": 0 if len(tiles) == 1 else tiles.shape[1],
            "n_blocks": tiles.shape[2],
            "size": change.size or 1,
            "BLOCKS": self.whole,
            "BLOCK_PAIRS": change.tile_bias is not None and not self.whole,
        }


def _tile_sizes(call: AttentionCall, reweight: Reweight) -> tuple[TileSizes, bool]:
    """Tile sizes, and whether there are blocks of which each is whole tiles."""
    width = max(call.query.shape[3], call.value.shape[3])
    table = ATTENTION_IN_SINGLE if call.query.dtype == torch.float32 else ATTENTION
    sizes = next((s for limit, s in table.items() if width <= limit), table[256])
    if call.mask.query_length <= FEW_ROWS:
        keys = min(sizes.keys, KEYS_OF_FEW_ROWS)
        sizes = TileSizes(FEW_ROWS, keys, 4, sizes.stages)
    if not _is_plain(call):
        keys = min(sizes.keys, LOOKED_AT)
        sizes = replace(sizes, keys=keys, stages=1)
    if reweight.size is None:
        return sizes, False
    first_query, first_key = reweight.first
    rows = math.gcd(reweight.size, first_query, sizes.rows)
    keys = math.gcd(reweight.size, sizes.keys)
    if call.mask.query_length + first_query <= reweight.size:
        rows = sizes.rows  # all queries lie in the first row of blocks
    if first_key or min(rows, keys) < FEWEST:
        return replace(sizes, keys=min(sizes.keys, LOOKED_AT), stages=1), False
    warps = min(sizes.warps, max(rows // 16, 4))
    return replace(sizes, rows=rows, keys=keys, warps=warps), True


def _is_plain(call: AttentionCall) -> bool:
    """Whether there are pairs about which nothing but their place has to be known."""
    shown = intervals(call.mask, call.query.device)
    return shown is not None and call.score.position_bias is None
