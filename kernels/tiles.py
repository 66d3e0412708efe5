"""What the accumulators of statistics are shown: tiles of weights, and whole rows."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.kernels.masks import MaskRule

NEAR = 256
"""Keys up to the diagonal whose distances are taken pair by pair."""


@dataclass
class Tile:
    """Weights of some queries on some keys, `[head, query, key]`.

    Attributes:
        weights: 0 where a pair does not exist.
        logs: Logarithm of the weights where it is known, else None.
        scratch: Same shape, free to overwrite; `logs` itself where nothing needs it
            a second time.
        log_unit: Nats of one unit of `logs`.
    """

    mask: MaskRule
    q0: int
    q1: int
    k0: int
    k1: int
    weights: Float[Tensor, "head query key"]
    logs: Float[Tensor, "head query key"] | None
    scratch: Float[Tensor, "head query key"]
    log_unit: float = math.log(2)

    @property
    def rows(self) -> slice:
        """Its queries."""
        return slice(self.q0, self.q1)

    @property
    def columns(self) -> slice:
        """Its keys."""
        return slice(self.k0, self.k1)

    def distance(self, columns: slice) -> Float[Tensor, "query key"]:
        """pos_query - pos_key, of some columns counted from `k0`."""
        first = self.first - columns.start
        n_key, like = columns.stop - columns.start, self.weights
        return _distance(self.q1 - self.q0, n_key, first, like.dtype, like.device)

    @property
    def n_queries(self) -> int:
        """Number of its queries."""
        return self.q1 - self.q0

    @property
    def n_keys(self) -> int:
        """Number of its keys."""
        return self.k1 - self.k0

    def within(self, column: int) -> int:
        """The nearest column that it has, or the end."""
        return min(max(column, 0), self.n_keys)

    @cached_property
    def middle(self) -> slice:
        """Columns nearer than `NEAR` to some query, on either side."""
        low = self.within(self.first - NEAR)
        return slice(low, max(self.within(self.first + self.n_queries + NEAR), low))

    @cached_property
    def behind(self) -> Float[Tensor, "head query"]:
        """Mass on the columns before the middle."""
        return self.weights[..., : self.middle.start].sum(-1)

    @cached_property
    def ahead(self) -> Float[Tensor, "head query"]:
        """Sum of p (pos_query - pos_key) over the columns after the middle."""
        columns = slice(self.middle.stop, self.n_keys)
        return self.far_distance(columns, self.weights[..., columns].sum(-1))

    def far_distance(
        self, columns: slice, mass: Float[Tensor, "head query"]
    ) -> Float[Tensor, "head query"]:
        """Sum of p (pos_query - pos_key) over columns none of which is near.

        One product with a vector counts from the first query; each query's own place
        in the tile then needs only the mass.
        """
        if columns.start >= columns.stop:
            return mass
        like = {"dtype": mass.dtype, "device": mass.device}
        key = self.first - torch.arange(columns.start, columns.stop, **like)
        place = torch.arange(self.n_queries, **like)
        return self.weights[..., columns] @ key + mass * place

    @property
    def first(self) -> int:
        """Distance of its first query and its first key."""
        return self.q0 + self.mask.query_offset - self.k0 - self.mask.key_offset

    def band(self, nearest: int | None, farthest: int | None) -> slice | None:
        """Columns that hold pairs with a distance in the range; None when none do."""
        shift = self.mask.query_offset - self.mask.key_offset
        low, high = self.k0, self.k1
        if farthest is not None:
            low = max(low, self.q0 + shift - farthest)
        if nearest is not None:
            high = min(high, self.q1 + shift - nearest)
        return slice(low - self.k0, high - self.k0) if low < high else None


@dataclass(frozen=True)
class Rows:
    """What finishing needs to know about all rows of the heads.

    Attributes:
        lse: `[head, query]`, nats, learned sink excluded; -inf where nothing is seen.
        sink_logits: `[head]` or None.
        mask: The rule.
    """

    lse: Float[Tensor, "head query"]
    sink_logits: Float[Tensor, " head"] | None
    mask: MaskRule

    @property
    def seen(self) -> Bool[Tensor, "head query"]:
        """Rows that see at least one key."""
        return self.lse > -torch.inf

    def only_seen(self, values: Tensor) -> Tensor:
        """The values, NaN where a row sees no key."""
        return values.masked_fill(~self.seen, torch.nan)


@lru_cache(maxsize=32)
def _distance(
    n_query: int, n_key: int, first: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "query key"]:
    """Distances of a tile; kept, because those along the diagonal are all the same."""
    query = torch.arange(n_query, device=device, dtype=dtype)[:, None] + first
    return query - torch.arange(n_key, device=device, dtype=dtype)
