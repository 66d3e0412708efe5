"""A mask rule as ranges of keys: what a GPU program can go by.

Causal, windowed, chunked, packed and prefix masks all show each query one unbroken
range of keys. Two numbers a query say it, and whole tiles are skipped or taken without
a look at single pairs.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.kernels.masks import MaskRule

LOOKED_AT = 1 << 26
"""Pairs of a mask function that are looked at together."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """Keys that each query sees.

    Attributes:
        low: First key of each query.
        high: The key after its last; equal to `low` where it sees none.
        seen: False for keys that no query sees, holes of padding; None if there are
            no such keys.
    """

    low: Int[Tensor, " query"]
    high: Int[Tensor, " query"]
    seen: Bool[Tensor, " key"] | None


@dataclass(frozen=True, eq=False)
class Ranges:
    """Tiles along one axis that each block along the other axis has to look at.

    Each row is `begin, full_begin, full_end, end`: from `full_begin` to `full_end`
    every pair is visible and nothing but the weights matters; in the rest, pairs have
    to be looked at one by one.
    """

    of_queries: Int[Tensor, "query_block 4"]
    of_keys: Int[Tensor, "key_block 4"]


def intervals(mask: MaskRule, device: torch.device) -> Intervals | None:
    """The rule of one sample as ranges of keys; None where it is not made of such.

    A function or a dense mask is looked at once for each rule, tile by tile.
    """
    return mask.kept(("intervals", str(device)), lambda: _intervals(mask, device))


def _intervals(mask: MaskRule, device: torch.device) -> Intervals | None:
    shift = mask.query_offset - mask.key_offset
    n_keys = mask.key_length
    if mask.function is None and mask.dense is None:
        query = torch.arange(mask.query_length, device=device, dtype=torch.int32)
        low = torch.zeros_like(query)
        if mask.behind is not None:
            low = (query + (shift - mask.behind)).clamp(0, n_keys)
        high = torch.full_like(query, n_keys)
        if mask.ahead is not None:
            high = (query + (shift + mask.ahead + 1)).clamp(0, n_keys)
        high = torch.maximum(low, high)
    else:
        found = _look(mask)
        if found is None:
            return None
        low, high = (edge.to(device) for edge in found)
    if mask.query_padding is not None:
        high = torch.where(mask.query_padding[0].to(device), high, low)
    seen = mask.key_padding
    if seen is not None:
        seen = seen[0].to(device).contiguous()
    return Intervals(low, high, seen)


def _look(mask: MaskRule) -> tuple[Tensor, Tensor] | None:
    """Ranges read off the pairs themselves; None if some row is broken."""
    bare = replace(mask, key_padding=None, query_padding=None)
    rows = max(LOOKED_AT // max(mask.key_length, 1), 1)
    lows, highs, whole = [], [], []
    for q0 in range(0, mask.query_length, rows):
        q1 = min(q0 + rows, mask.query_length)
        k0, k1 = bare.span(q0, q1)
        visible = bare.tile(q0, q1, k0, k1)
        if visible is None:
            low = torch.full((q1 - q0,), k0, dtype=torch.int32, device=mask.device)
            high = torch.full_like(low, k1)
        elif visible.shape[1] > 1:
            return None
        else:
            low, high, unbroken = _edges(visible[0, 0], k0)
            whole.append(unbroken)
        lows.append(low)
        highs.append(high)
    if whole and not bool(torch.stack(whole).all()):
        return None
    return torch.cat(lows), torch.cat(highs)


def _edges(
    visible: Bool[Tensor, "query key"], k0: int
) -> tuple[Int[Tensor, " query"], Int[Tensor, " query"], Bool[Tensor, ""]]:
    """First visible key, the one after the last, and whether all between are."""
    if visible.shape[1] == 0:
        none = torch.zeros(len(visible), dtype=torch.int32, device=visible.device)
        return none, none, torch.ones((), dtype=torch.bool, device=visible.device)
    count = visible.sum(-1, dtype=torch.int32)
    bits = visible.to(torch.uint8)
    first = bits.argmax(-1).int()
    last = visible.shape[1] - bits.flip(-1).argmax(-1).int()
    blind = count == 0
    unbroken = (blind | (last - first == count)).all()
    low = (first + k0).masked_fill(blind, 0)
    return low, (last + k0).masked_fill(blind, 0), unbroken


def ranges(
    mask: MaskRule,
    shown: Intervals,
    block: tuple[int, int],
    reach: int | None,
    plain: bool,
) -> Ranges:
    """Which tiles to look at, and which of them are wholly visible.

    Args:
        mask: The rule of one sample.
        shown: Its intervals.
        block: Queries and keys of a tile.
        reach: Pairs nearer than this, in tokens, matter one by one; None for none.
        plain: False where every pair has something of its own, such as a bias.
    """
    asked = ("ranges", str(shown.low.device), block, reach, plain)
    return mask.kept(asked, lambda: _ranges(mask, shown, block, reach, plain))


def _ranges(
    mask: MaskRule,
    shown: Intervals,
    block: tuple[int, int],
    reach: int | None,
    plain: bool,
) -> Ranges:
    rows, columns = block
    device = shown.low.device
    blind = shown.low >= shown.high
    never, always = torch.iinfo(torch.int32).max, -1

    def tiled(values: Tensor, empty: int) -> Tensor:
        room = (0, -len(values) % rows)
        padded = torch.nn.functional.pad(values, room, value=empty)
        return padded.unflatten(0, (-1, rows))

    def of_tiles(edge: Tensor, empty: int, largest: bool) -> Tensor:
        tiles = tiled(edge.masked_fill(blind, empty), empty)
        return (tiles.amax(1) if largest else tiles.amin(1))[None]

    begin = torch.arange(0, mask.key_length, columns, device=device)[:, None]
    end = begin + columns
    touched = of_tiles(shown.low, never, largest=False) < end
    touched &= of_tiles(shown.high, always, largest=True) > begin
    full = touched & (of_tiles(shown.low, always, largest=True) <= begin)
    full &= of_tiles(shown.high, never, largest=False) >= end
    full &= end <= mask.key_length
    full &= ~tiled(blind, False).any(1)[None]
    if reach is not None:
        place = torch.arange(0, mask.query_length, rows, device=device)[None]
        shift = mask.query_offset - mask.key_offset
        full &= place + shift - (end - 1) >= reach
    if shown.seen is not None:
        room = (0, -mask.key_length % columns)
        seen = torch.nn.functional.pad(shown.seen, room, value=False)
        full &= seen.unflatten(0, (-1, columns)).all(1)[:, None]
    full &= plain
    return Ranges(_runs(touched.T, full.T), _runs(touched, full))


def _runs(touched: Tensor, full: Tensor) -> Int[Tensor, "block 4"]:
    """`begin, full_begin, full_end, end` of each row of tiles."""
    n_tiles = touched.shape[1]
    place = torch.arange(n_tiles, device=touched.device)
    begin = place.where(touched, n_tiles).amin(1)
    end = (place + 1).where(touched, 0).amax(1)
    end = torch.maximum(begin, end)
    full_begin = place.where(full, n_tiles).amin(1)
    broken = ~full & (place[None] >= full_begin[:, None])
    full_end = place.where(broken, n_tiles).amin(1)
    none = full_begin >= n_tiles
    full_begin = torch.where(none, end, full_begin)
    full_end = torch.where(none, end, full_end)
    return torch.stack([begin, full_begin, full_end, end], 1).int().contiguous()
