"""Row maxima as one integer each, and rows in the order of the block that holds theirs.

The integers are those of `placed` in `triton_tiles`.
"""

import sys
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

LAST_PLACE = 0x7FFFFFFF

HIGH = int(sys.byteorder == "little")
"""Which half of an integer in memory holds the number; the other holds the place."""


@dataclass(frozen=True, eq=False)
class ByBlock:
    """Rows in the order of their blocks, cut into tiles of one block each.

    The number of tiles is the largest that there could be, so that nothing waits for
    the device; those that are not needed have `n_blocks` as their block.

    Attributes:
        order: Rows by block.
        first_row: Where the rows of each block begin in `order`, and their end.
        first_tile: How many tiles lie before each block, and in all.
        block_of_tile: Block of each tile.
    """

    order: Int[Tensor, "head query"]
    first_row: Int[Tensor, "head edge"]
    first_tile: Int[Tensor, "head edge"]
    block_of_tile: Int[Tensor, "head tile"]

    @classmethod
    def of(cls, best: Int[Tensor, "head query"], n_blocks: int, rows: int) -> "ByBlock":
        """From what `place_maximum` found.

        Args:
            best: Value and block of each row's maximum.
            n_blocks: Blocks of keys.
            rows: Of a tile.
        """
        n_heads, n_queries = best.shape
        # Rows that see nothing have no block; any will do.
        place = places(best).clamp_(0, n_blocks - 1)
        blocks, order = place.sort(1)
        edges = torch.arange(n_blocks + 1, device=best.device, dtype=torch.int32)
        edges = edges.expand(n_heads, -1).contiguous()
        first_row = torch.searchsorted(blocks, edges, out_int32=True)
        tiles = (first_row.diff() + (rows - 1)) // rows
        first_tile = torch.nn.functional.pad(tiles.cumsum(1, dtype=torch.int32), (1, 0))
        n_tiles = -(-n_queries // rows) + n_blocks
        each = torch.arange(n_tiles, device=best.device, dtype=torch.int32)
        each = each.expand(n_heads, -1).contiguous()
        ends = first_tile[:, 1:].contiguous()
        block_of_tile = torch.searchsorted(ends, each, right=True, out_int32=True)
        return cls(order, first_row, first_tile, block_of_tile)


def numbers(packed: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The numbers of what `placed` packed: logits in base 2, less the norm."""
    ordered = packed.view(torch.int32)[..., HIGH::2]
    bits = torch.where(ordered >= 0, ordered, ordered ^ LAST_PLACE)
    return bits.view(torch.float32)


def places(packed: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The places of what `placed` packed, as 32-bit integers."""
    return LAST_PLACE - packed.view(torch.int32)[..., 1 - HIGH :: 2]


def unpack_places(packed: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The places of what `placed` packed, in its own memory."""
    return packed.bitwise_and_(LAST_PLACE).neg_().add_(LAST_PLACE)
