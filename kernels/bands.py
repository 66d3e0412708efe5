"""Pairs whose distance lies in a band: as a tile, and counted block by block."""

from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def band(
    n_query: int,
    n_key: int,
    first: int,
    ahead: int | None,
    behind: int | None,
    device: str,
) -> Bool[Tensor, "1 1 query key"]:
    """Pairs of a tile that lie within a band of distances.

    Args:
        n_query: Queries of the tile.
        n_key: Its keys.
        first: Distance (position of the query less that of the key) of its first pair.
        ahead: How far a query may look ahead; None is unbounded.
        behind: ... and back.
        device: Where the tile is made.
    """
    query = torch.arange(n_query, device=device)[:, None] + first
    distance = query - torch.arange(n_key, device=device)
    inside = torch.ones_like(distance, dtype=torch.bool)
    if ahead is not None:
        inside &= distance >= -ahead
    if behind is not None:
        inside &= distance <= behind
    return inside[None, None]


kept_band = lru_cache(maxsize=64)(band)
"""For small tiles: all of those along a diagonal are the same."""


def pairs_per_block(
    n_query: int,
    n_key: int,
    first: int,
    ahead: int | None,
    behind: int | None,
    size: int,
    device: torch.device | str | None = None,
) -> Int[Tensor, "1 1 row column"]:
    """Pairs within a band of each block, in closed form.

    Args:
        n_query: Queries of the map.
        n_key: Its keys.
        first: Distance of its first pair.
        ahead: How far a query may look ahead; None is unbounded.
        behind: ... and back.
        size: Queries and keys of a block.
        device: Where the counts are made.
    """
    row = torch.arange(0, n_query, size, device=device)[:, None]
    column = torch.arange(0, n_key, size, device=device)[None]
    tall = (n_query - row).clamp(max=size)
    wide = (n_key - column).clamp(max=size)
    shift = row - column + first

    def below(farthest: int) -> Tensor:
        """Pairs with a distance of at most `farthest`.

        Query i of a block misses its first `i - reach` keys, so that what all miss is
        a difference of two sums of 0, 1, ..., wide, wide, ...
        """
        reach = farthest - shift
        missed = _staircase(tall - 1 - reach, wide) - _staircase(-reach - 1, wide)
        return tall * wide - missed

    farthest = below(behind) if behind is not None else tall * wide
    nearest = below(-ahead - 1) if ahead is not None else 0
    return (farthest - nearest)[None, None]


def _staircase(last: Tensor, top: Tensor) -> Tensor:
    """Sum of min(u, top) over u from 0 to `last`; 0 where `last` is below."""
    climbed = torch.minimum(last, top).clamp_(min=0)
    return climbed * (climbed + 1) // 2 + top * (last - top).clamp_(min=0)
