"""Which (query, key) pairs exist, told tile by tile.

A rule answers for any tile and never builds the query x key map. Positions are
absolute: `query_offset + query index`, `key_offset + key index`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.kernels.bands import band, kept_band, pairs_per_block

Kept = TypeVar("Kept")

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of broadcastable batch, head, query-position and key-position indices, to bool."""

COUNTED = 1 << 21
"""Pairs of which visibility is counted at a time."""

KEPT = 1 << 17
"""Pairs of a tile, at most, whose visibility is kept for the next one like it."""


@dataclass(frozen=True, eq=False)
class MaskRule:
    """Which pairs of query and key exist.

    A pair is visible when `-ahead <= pos_query - pos_key <= behind`, both are real
    tokens, and `function` and `dense`, where given, agree.

    Attributes:
        query_length: Number of queries.
        key_length: Number of keys.
        ahead: How many tokens ahead a query may look; 0 is causal, None unbounded.
        behind: How many tokens back it may look; a causal sliding window of w
            tokens is w - 1, None unbounded.
        query_offset: Absolute position of the first query.
        key_offset: Absolute position of the first key, above 0 in a sliding cache.
        start: Absolute position at which the sequence starts (after left padding).
        starts: `[batch]`, the same for each sample, where the padding has left a
            sliding cache and cannot be seen in `key_padding`.
        key_padding: `[batch, key]`, True for real keys; None when all are.
        query_padding: `[batch, query]`, True for real queries; None when all are.
        function: What the band cannot say (chunks, packed documents, prefixes).
        n_batch: Samples that `function` is asked about.
        dense: `[batch or 1, head or 1, query, key]`, a mask that came as a tensor.
        device: Where tiles are made.
    """

    query_length: int
    key_length: int
    ahead: int | None = 0
    behind: int | None = None
    query_offset: int = 0
    key_offset: int = 0
    start: int = 0
    starts: Int[Tensor, " batch"] | None = None
    key_padding: Bool[Tensor, "batch key"] | None = None
    query_padding: Bool[Tensor, "batch query"] | None = None
    function: MaskFunction | None = None
    n_batch: int = 1
    dense: Bool[Tensor, "#batch #head query key"] | None = None
    device: torch.device | str | None = None
    _kept: dict[tuple, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def causal(cls, length: int, window: int | None = None) -> "MaskRule":
        """Self-attention over `length` tokens, each seeing itself and what is before.

        Args:
            length: Number of tokens.
            window: Number of tokens visible, the query's own included.
        """
        return cls(length, length, behind=None if window is None else window - 1)

    @classmethod
    def full(cls, query_length: int, key_length: int) -> "MaskRule":
        """Every query sees every key, as in encoders and cross-attention."""
        return cls(query_length, key_length, ahead=None)

    def kept(self, asked: tuple, make: Callable[[], Kept]) -> Kept:
        """What was asked of this rule before, else made now: layers share a rule."""
        if asked not in self._kept:
            self._kept[asked] = make()
        return self._kept[asked]

    def on(self, device: torch.device) -> "MaskRule":
        """The same rule, with tiles and counts made on a device."""
        if self.device is not None and torch.device(self.device) == device:
            return self
        return self.kept(("on", device), lambda: replace(self, device=device))

    @property
    def is_band(self) -> bool:
        """True when distances alone decide: no padding, no function, no tensor."""
        extras = (self.key_padding, self.query_padding, self.function, self.dense)
        return all(extra is None for extra in extras)

    @property
    def is_full(self) -> bool:
        """True when every pair is visible."""
        everything = 0, self.query_length, 0, self.key_length
        return self.is_band and not self.uncertain(*everything)

    @property
    def is_square_causal(self) -> bool:
        """True for plain causal attention without a cache."""
        aligned = self.query_offset == self.key_offset
        square = self.query_length == self.key_length
        reach = self.behind is None or self.behind >= self.key_length - 1
        return self.is_band and self.ahead == 0 and reach and aligned and square

    def span(self, q0: int, q1: int) -> tuple[int, int]:
        """Range of key indices outside which queries q0..q1-1 see nothing."""
        shift = self.query_offset - self.key_offset
        low = 0 if self.behind is None else q0 + shift - self.behind
        high = self.key_length if self.ahead is None else q1 + shift + self.ahead
        low = min(max(low, 0), self.key_length)
        return low, max(min(high, self.key_length), low)

    def tile(self, q0: int, q1: int, k0: int, k1: int) -> Tensor | None:
        """Visibility of a tile `[batch or 1, head or 1, query, key]`.

        Returns:
            None when every pair of the tile is visible.
        """
        parts = []
        first = self.query_offset + q0 - self.key_offset - k0
        nearest, farthest = first - (k1 - k0 - 1), first + (q1 - q0 - 1)
        inside_ahead = self.ahead is None or nearest >= -self.ahead
        inside_behind = self.behind is None or farthest <= self.behind
        if not (inside_ahead and inside_behind):
            ahead = None if inside_ahead else self.ahead
            behind = None if inside_behind else self.behind
            box = q1 - q0, k1 - k0, first
            make = kept_band if box[0] * box[1] <= KEPT else band
            parts.append(make(*box, ahead, behind, str(self.device or "cpu")))
        if self.key_padding is not None:
            parts.append(self.key_padding[:, None, None, k0:k1])
        if self.query_padding is not None:
            parts.append(self.query_padding[:, None, q0:q1, None])
        if self.dense is not None:
            parts.append(self.dense[..., q0:q1, k0:k1])
        if self.function is not None:
            parts.append(self._apply(self.function, q0, q1, k0, k1))
        if not parts:
            return None
        visible = parts[0]
        for part in parts[1:]:
            visible = visible & part
        return visible.expand(-1, -1, q1 - q0, k1 - k0)

    def may_be_blind(self, q0: int, q1: int) -> bool:
        """False when each of queries q0..q1-1 is sure to see a key."""
        if not self.is_band:
            return True
        shift = self.query_offset - self.key_offset
        below = self.ahead is not None and q0 + shift + self.ahead < 0
        above = (
            self.behind is not None and q1 - 1 + shift - self.behind >= self.key_length
        )
        return below or above

    def uncertain(self, q0: int, q1: int, k0: int, k1: int) -> list[tuple[int, int]]:
        """Ranges of a tile's keys outside which every pair is visible."""
        if not self.is_band:
            return [(k0, k1)]
        shift = self.query_offset - self.key_offset
        left = k0 if self.behind is None else q1 - 1 + shift - self.behind
        right = k1 if self.ahead is None else q0 + shift + self.ahead + 1
        left, right = min(max(left, k0), k1), min(max(right, k0), k1)
        if left >= right:
            return [(k0, k1)]
        return [(a, b) for a, b in ((k0, left), (right, k1)) if a < b]

    def pairs(self, targets: Int[Tensor, "batch query"]) -> Bool[Tensor, "..."]:
        """Visibility of one target key of each query, `[batch, head or 1, query]`.

        Args:
            targets: Key indices; those below 0 are not visible.
        """
        index = targets.clamp(min=0)
        query = torch.arange(self.query_length, device=targets.device)[None]
        distance = query + self.query_offset - index - self.key_offset
        seen = targets >= 0
        if self.ahead is not None:
            seen = seen & (distance >= -self.ahead)
        if self.behind is not None:
            seen = seen & (distance <= self.behind)
        if self.key_padding is not None:
            seen = seen & self.key_padding.gather(1, index)
        if self.query_padding is not None:
            seen = seen & self.query_padding
        seen = seen[:, None]
        if self.dense is not None:
            dense = self.dense.expand(len(targets), -1, -1, -1)
            at = index[:, None, :, None].expand(-1, dense.shape[1], -1, 1)
            seen = seen & dense.gather(3, at)[..., 0]
        if self.function is not None:
            batch = torch.arange(len(targets), device=targets.device)[:, None]
            head = torch.zeros_like(batch)
            positions = query + self.query_offset, index + self.key_offset
            seen = seen & self.function(batch, head, *positions)[:, None]
        return seen

    def distance(
        self,
        q0: int,
        q1: int,
        k0: int,
        k1: int,
        device: torch.device | str | None = None,
    ) -> Int[Tensor, "query key"]:
        """pos_query - pos_key of a tile."""
        query = torch.arange(q0, q1, device=device) + self.query_offset
        key = torch.arange(k0, k1, device=device) + self.key_offset
        return query[:, None] - key

    def _apply(
        self,
        function: MaskFunction,
        q0: int,
        q1: int,
        k0: int,
        k1: int,
    ) -> Tensor:
        device = self.device
        query = torch.arange(q0, q1, device=device) + self.query_offset
        key = torch.arange(k0, k1, device=device) + self.key_offset
        batch = torch.arange(self.n_batch, device=device)[:, None, None, None]
        head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
        visible = function(batch, head, query[:, None], key[None, :])
        while visible.dim() < 4:
            visible = visible[None]
        return visible.expand(-1, -1, q1 - q0, k1 - k0)

    def narrow(self, sample: int, queries: slice, keys: slice) -> "MaskRule":
        """The rule of some queries and keys of one sample; one object for each."""
        asked = "narrow", sample, queries.start, queries.stop, keys.start, keys.stop
        return self.kept(asked, lambda: self._narrow(sample, queries, keys))

    def _narrow(self, sample: int, queries: slice, keys: slice) -> "MaskRule":
        function = self.function
        if function is not None:
            function = _of_sample(function, sample)
        dense = self.dense
        if dense is not None:
            row = slice(sample, sample + 1) if dense.shape[0] > 1 else slice(None)
            dense = dense[row, :, queries, keys]
        left_padded = self.key_padding is not None and keys.start > 0
        first = self.key_offset + keys.start
        start = max(self.start, first) if left_padded else self.start
        if self.starts is not None:
            start = max(start, int(self.starts[sample]))
        return replace(
            self,
            query_length=queries.stop - queries.start,
            key_length=keys.stop - keys.start,
            query_offset=self.query_offset + queries.start,
            key_offset=first,
            start=start,
            starts=None,
            key_padding=_holes(self.key_padding, sample, keys),
            query_padding=_holes(self.query_padding, sample, queries),
            function=function,
            n_batch=1,
            dense=dense,
        )

    def of_heads(self, heads: slice) -> "MaskRule":
        """The rule of some heads: another one only where the mask is a tensor."""
        if self.dense is None or self.dense.shape[1] == 1:
            return self
        return replace(self, dense=self.dense[:, heads])

    def rows(self, q0: int, q1: int) -> "MaskRule":
        """The rule of queries q0..q1-1 of every sample."""
        padding, dense = self.query_padding, self.dense
        return replace(
            self,
            query_length=q1 - q0,
            query_offset=self.query_offset + q0,
            query_padding=None if padding is None else padding[:, q0:q1],
            dense=None if dense is None else dense[..., q0:q1, :],
        )

    def queries_per_key(
        self, nearest: int | None = None, farthest: int | None = None
    ) -> Tensor:
        """Number of queries that see each key, `[batch or 1, head or 1, key]`.

        Args:
            nearest: Count only pairs with pos_query - pos_key of at least this.
            farthest: ... and of at most this.
        """
        count = self._count_band if self.is_band else self._count_tiles
        asked = "queries", nearest, farthest
        return self.kept(asked, lambda: count(nearest, farthest))

    def _count_band(self, nearest: int | None, farthest: int | None) -> Tensor:
        key = torch.arange(self.key_length, device=self.device) + self.key_offset
        lows = [n for n in (nearest, _negative(self.ahead)) if n is not None]
        highs = [n for n in (farthest, self.behind) if n is not None]
        first = torch.full_like(key, self.query_offset)
        last = first + self.query_length - 1
        if lows:
            first = torch.maximum(first, key + max(lows))
        if highs:
            last = torch.minimum(last, key + min(highs))
        return (last - first + 1).clamp(min=0)[None, None]

    def _count_tiles(self, nearest: int | None, farthest: int | None) -> Tensor:
        counts: Tensor | None = None
        rows = max(COUNTED // max(self.key_length, 1), 1)
        for q0 in range(0, self.query_length, rows):
            q1 = min(q0 + rows, self.query_length)
            visible = self.tile(q0, q1, 0, self.key_length)
            if visible is None:
                shape = (1, 1, q1 - q0, self.key_length)
                visible = torch.ones(shape, dtype=torch.bool, device=self.device)
            if nearest is not None or farthest is not None:
                distance = self.distance(q0, q1, 0, self.key_length, visible.device)
                if nearest is not None:
                    visible = visible & (distance >= nearest)
                if farthest is not None:
                    visible = visible & (distance <= farthest)
            block = visible.sum(-2)
            counts = block if counts is None else counts + block
        return torch.zeros(1, 1, self.key_length) if counts is None else counts

    def pairs_per_block(self, size: int) -> Tensor:
        """Visible pairs of each block, `[batch or 1, head or 1, row, column]`.

        Args:
            size: Queries and keys of a block.
        """
        return self.kept(("pairs", size), lambda: self._count_pairs(size))

    def _count_pairs(self, size: int) -> Tensor:
        if self.is_band:
            lengths = self.query_length, self.key_length
            box = *lengths, self.query_offset - self.key_offset
            return pairs_per_block(*box, self.ahead, self.behind, size, self.device)
        blocks = []
        for q0 in range(0, self.query_length, size):
            rows = self.rows(q0, min(q0 + size, self.query_length))
            counts = rows.queries_per_key()
            padded = torch.nn.functional.pad(counts, (0, -self.key_length % size))
            blocks.append(padded.unflatten(-1, (-1, size)).sum(-1))
        return torch.stack(blocks, -2)


def _of_sample(function: MaskFunction, sample: int) -> MaskFunction:
    """The function for a batch that holds one sample of another."""

    def own(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return function(batch + sample, head, query, key)

    return own


def _negative(value: int | None) -> int | None:
    return None if value is None else -value


def _holes(
    real: Bool[Tensor, "batch token"] | None, sample: int, tokens: slice
) -> Bool[Tensor, "1 real"] | None:
    """Padding that is left among one sample's tokens; None when there is none."""
    if real is None:
        return None
    own = real[sample : sample + 1, tokens]
    return None if own.all() else own
