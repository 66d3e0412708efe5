"""How each statistic grows tile by tile, and how two parts of it merge.

An accumulator belongs to one sample and a range of heads. It sees every tile of its
rows once, a row's in the order of their keys; accumulators over different rows merge
into one.
"""

from abc import abstractmethod
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels.tiles import Rows, Tile


class Accumulator:
    """One statistic while it grows."""

    def __init__(
        self, statistic: d.Statistic, like: Float[Tensor, "head query"]
    ) -> None:
        """Start empty."""
        self.statistic = statistic
        self.like = like

    @abstractmethod
    def update(self, tile: Tile) -> None:
        """Take in one tile."""

    @abstractmethod
    def merge(self, other: "Accumulator") -> None:
        """Take in what another accumulator saw of other rows."""

    @abstractmethod
    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """The arrays, `[head, ...]`."""


class Sum(Accumulator):
    """A statistic that is one sum over tiles: along rows or along columns."""

    def __init__(self, statistic: d.Statistic, like: Tensor, n_keys: int) -> None:
        """Start empty; `like` is `[head, query]`."""
        super().__init__(statistic, like)
        column = statistic.arrays[0].dims == d.KEY
        self.total = like.new_zeros(like.shape[0], n_keys if column else like.shape[1])

    def merge(self, other: "Accumulator") -> None:
        """Add the other's sums."""
        assert isinstance(other, Sum)
        self.total += other.total

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """The sums of the rows that see a key."""
        return {self.statistic.name: rows.only_seen(self.total)}


class Entropy(Sum):
    """-sum p ln p, from base-2 logarithms where the tile has them."""

    def update(self, tile: Tile) -> None:
        """Add the tile's -p ln p."""
        if tile.logs is None:
            part = torch.special.entr(tile.weights).sum(-1)
        else:
            torch.mul(tile.weights, tile.logs, out=tile.scratch)
            part = tile.scratch.sum(-1).mul_(-tile.log_unit)
        self.total[:, tile.rows] += part


class Distance(Sum):
    """sum p (pos_query - pos_key): pair by pair only near the diagonal."""

    def update(self, tile: Tile) -> None:
        """Add the tile's weighted distances."""
        middle, behind = tile.middle, slice(0, tile.middle.start)
        near = (tile.weights[..., middle] * tile.distance(middle)).sum(-1)
        far = tile.far_distance(behind, tile.behind)
        self.total[:, tile.rows] += near + far + tile.ahead


class ClippedDistance(Sum):
    """sum p min(pos_query - pos_key, clip): of far keys only the mass is needed."""

    def update(self, tile: Tile) -> None:
        """Add the tile's clipped distances."""
        clip = self.statistic.parameters["clip"]
        middle, n_far = tile.middle, tile.within(tile.first - clip + 1)
        if n_far < middle.start:
            mass = tile.weights[..., :n_far].sum(-1)
        else:
            mass = tile.behind + tile.weights[..., middle.start : n_far].sum(-1)
        near = slice(n_far, middle.stop)
        distance = tile.distance(near).clamp(max=clip)
        part = (tile.weights[..., near] * distance).sum(-1)
        self.total[:, tile.rows] += mass * clip + part + tile.ahead


class FirstKeys(Sum):
    """Mass on the first keys of the sequence."""

    def update(self, tile: Tile) -> None:
        """Add the columns that are among the first."""
        first = self.statistic.parameters.get("first", 1)
        start = tile.mask.start - tile.mask.key_offset
        low, high = max(start, tile.k0), min(start + first, tile.k1)
        if low < high:
            columns = slice(low - tile.k0, high - tile.k0)
            self.total[:, tile.rows] += tile.weights[..., columns].sum(-1)


class LocalMass(Sum):
    """Mass within the window."""

    def update(self, tile: Tile) -> None:
        """Add the pairs nearer than the window; the nearest columns are all within."""
        window = self.statistic.parameters["window"]
        farthest = tile.first + tile.n_queries - 1
        edge = slice(
            tile.within(tile.first - window + 1), tile.within(farthest - window + 1)
        )
        at_edge = tile.weights[..., edge] * (tile.distance(edge) < window)
        inside = tile.weights[..., edge.stop :].sum(-1)
        self.total[:, tile.rows] += at_edge.sum(-1) + inside


class Received(Sum):
    """Column sums over the number of queries that see the key."""

    def update(self, tile: Tile) -> None:
        """Add the tile's columns."""
        self.total[:, tile.columns] += tile.weights.sum(1)

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """Divide by the queries; NaN where no query sees the key."""
        counts = rows.mask.queries_per_key()[0].to(self.total.device)
        return {"received": self.total / counts}


class ReceivedLate(Sum):
    """Column sums of the last queries over the number of those that see the key."""

    def update(self, tile: Tile) -> None:
        """Add the columns of the queries that are among the last."""
        first = tile.mask.query_length - self.statistic.parameters["last"]
        early = max(first - tile.q0, 0)
        if early < tile.n_queries:
            self.total[:, tile.columns] += tile.weights[:, early:].sum(1)

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """Divide by those queries; NaN where none of them sees the key."""
        late = d.late(rows.mask, self.statistic.parameters["last"])
        counts = late.queries_per_key()[0].to(self.total.device)
        return {"received_late": self.total / counts}


class FutureInfluence(Sum):
    """Column sums over a range of distances."""

    def update(self, tile: Tile) -> None:
        """Add the columns of pairs within the horizon."""
        near, far = (self.statistic.parameters[name] for name in ("near", "far"))
        band = tile.band(near, far)
        if band is not None:
            distance = tile.distance(band)
            inside = (distance >= near) & (distance <= far)
            part = (tile.weights[..., band] * inside).sum(1)
            self.total[:, tile.k0 + band.start : tile.k0 + band.stop] += part

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """Divide by the queries within the horizon; NaN where there are none."""
        near, far = (self.statistic.parameters[name] for name in ("near", "far"))
        counts = rows.mask.queries_per_key(near, far)[0].to(self.total.device)
        return {"fai": self.total / counts}


class ReceivedMax(Sum):
    """Column maxima."""

    def update(self, tile: Tile) -> None:
        """Keep the larger of each column."""
        largest = self.total[:, tile.columns]
        torch.maximum(largest, tile.weights.amax(1), out=largest)

    def merge(self, other: Accumulator) -> None:
        """Keep the larger of each column."""
        assert isinstance(other, Sum)
        torch.maximum(self.total, other.total, out=self.total)

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """NaN where no query sees the key."""
        unseen = rows.mask.queries_per_key()[0].to(self.total.device) == 0
        return {"received_max": self.total.masked_fill(unseen, torch.nan)}


class MaxMass(Accumulator):
    """The largest weight of each row and its key."""

    def __init__(self, statistic: d.Statistic, like: Tensor, n_keys: int) -> None:
        """Start empty; `like` is `[head, query]`."""
        super().__init__(statistic, like)
        self.mass = torch.full_like(like, -1.0)
        self.key = torch.full(like.shape, -1, device=like.device)

    def update(self, tile: Tile) -> None:
        """Keep the larger of each row; the first key wins a tie."""
        mass, key = _row_maximum(tile.weights)
        self._keep(tile.rows, mass, key + tile.k0)

    def merge(self, other: Accumulator) -> None:
        """Keep the larger of each row."""
        assert isinstance(other, MaxMass)
        self._keep(slice(None), other.mass, other.key)

    def _keep(self, rows: slice, mass: Tensor, key: Tensor) -> None:
        larger = mass > self.mass[:, rows]
        self.mass[:, rows] = torch.where(larger, mass, self.mass[:, rows])
        self.key[:, rows] = torch.where(larger, key, self.key[:, rows])

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """NaN and -1 where a row sees no key."""
        key = self.key.masked_fill(~rows.seen, -1)
        return {"max_mass": rows.only_seen(self.mass), "max_key": key}


def _row_maximum(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Largest of each row and its index: numpy's search is the vectorized one."""
    if weights.device.type != "cpu":
        mass, key = weights.max(-1)
        return mass, key
    key = torch.from_numpy(weights.numpy().argmax(-1))
    return weights.gather(-1, key[..., None])[..., 0], key


class TopKeys(Accumulator):
    """The k largest weights of each row and their keys; -1 where none is held."""

    def __init__(self, statistic: d.Statistic, like: Tensor, n_keys: int) -> None:
        """Start empty; `like` is `[head, query]`."""
        super().__init__(statistic, like)
        self.k = statistic.parameters["k"]
        shape = (*like.shape, self.k)
        self.mass = like.new_full(shape, -1.0)
        self.key = torch.full(shape, -1, device=like.device)

    def update(self, tile: Tile) -> None:
        """Keep the largest."""
        self._keep(tile.rows, tile.k0, tile.weights)

    def merge(self, other: Accumulator) -> None:
        """Take in the other's rows, which are empty here."""
        assert isinstance(other, TopKeys)
        torch.maximum(self.mass, other.mass, out=self.mass)
        torch.maximum(self.key, other.key, out=self.key)

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """NaN and -1 beyond the keys seen; a weight of 0 alone does not tell them."""
        self.mass.masked_fill_(self.mass == 0, -1.0)
        short = (self.mass[..., -1] < 0).any(0)
        for block in {query // FILLED for query in short.nonzero().flatten().tolist()}:
            self._fill(rows, block * FILLED, min((block + 1) * FILLED, len(short)))
        missing = self.mass < 0
        mass = self.mass.masked_fill(missing, torch.nan)
        return {"top_mass": mass, "top_key": self.key.masked_fill(missing, -1)}

    def _fill(self, rows: Rows, q0: int, q1: int) -> None:
        """Take in the visible keys of no weight: those with one are held already."""
        k0, k1 = rows.mask.span(q0, q1)
        mass, key = self.mass[:, q0:q1], self.key[:, q0:q1] - k0
        left = mass.new_zeros(len(mass), q1 - q0, k1 - k0 + 1)  # the last is no key
        visible = rows.mask.tile(q0, q1, k0, k1)
        if visible is not None:
            left[..., :-1].masked_fill_(~visible[0].to(left.device), -1.0)
        held = (mass > 0) & (key >= 0) & (key < k1 - k0)
        left.scatter_(-1, key.where(held, k1 - k0), -1.0)
        self._keep(slice(q0, q1), k0, left[..., :-1])

    def _keep(self, rows: slice, k0: int, weights: Tensor) -> None:
        """Merge with the largest of a tile, whose keys come after those held."""
        mass, key = _row_largest(weights, self.k)
        mass = torch.cat([self.mass[:, rows], mass], -1)
        key = torch.cat([self.key[:, rows], key + k0], -1)
        mass, order = mass.sort(dim=-1, descending=True, stable=True)
        self.mass[:, rows] = mass[..., : self.k]
        self.key[:, rows] = key.gather(-1, order[..., : self.k])


FILLED = 16
"""Rows whose keys of no weight are looked for at a time."""


def _row_largest(weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, or all, in the order of the keys; first ones on ties.

    One more than k is taken to see where a tie, of which `topk` promises nothing,
    crosses the border.
    """
    n_keys = weights.shape[-1]
    n = min(k, n_keys)
    mass, key = weights.topk(min(k + 1, n_keys))
    least, beyond, key = mass[..., n - 1 : n], mass[..., n:], key[..., :n]
    crowded = (beyond == least).any(-1)
    if crowded.any():
        few, least = weights[crowded], least[crowded]
        above, tied = few > least, few == least
        room = n - above.sum(-1, keepdim=True)
        chosen = above | (tied & (tied.cumsum(-1) <= room))
        key[crowded] = chosen.nonzero()[:, 1].view(-1, n)
    key = key.sort(-1).values
    return weights.gather(-1, key), key


class BlockMap(Accumulator):
    """Sum and maximum of each block."""

    def __init__(self, statistic: d.Statistic, like: Tensor, n_keys: int) -> None:
        """Start empty; `like` is `[head, query]`."""
        super().__init__(statistic, like)
        self.size = statistic.parameters["size"]
        blocks = (-(-like.shape[1] // self.size), -(-n_keys // self.size))
        self.total = like.new_zeros(like.shape[0], *blocks)
        self.largest = like.new_zeros(like.shape[0], *blocks)

    def update(self, tile: Tile) -> None:
        """Add the tile to the blocks that it touches."""
        size = self.size
        sides = tile.k0 % size, -tile.k1 % size
        columns = slice(tile.k0 // size, -(-tile.k1 // size))

        def by_block(values: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(values, sides)
            return padded.unflatten(-1, (-1, size))

        whole = -(-tile.q0 // size) * size, tile.q1 // size * size
        edges = {tile.q0, min(whole[0], tile.q1), max(whole[1], tile.q0), tile.q1}
        for low, high in pairwise(sorted(edges)):
            part = tile.weights[:, low - tile.q0 : high - tile.q0]
            part = part.unflatten(1, (max((high - low) // size, 1), -1))
            rows = slice(low // size, -(-high // size))
            # Rows first: a row's neighbors in memory are then reduced side by side.
            self.total[:, rows, columns] += by_block(part.sum(2)).sum(-1)
            largest = self.largest[:, rows, columns]
            torch.maximum(largest, by_block(part.amax(2)).amax(-1), out=largest)

    def merge(self, other: Accumulator) -> None:
        """Add the other's sums and keep the larger maxima."""
        assert isinstance(other, BlockMap)
        self.total += other.total
        torch.maximum(self.largest, other.largest, out=self.largest)

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """Divide by the visible pairs of each block; NaN where there are none."""
        pairs = rows.mask.pairs_per_block(self.size)[0].to(self.total.device)
        largest = self.largest.masked_fill(pairs == 0, torch.nan)
        return {"block_mean": self.total / pairs, "block_max": largest}


class Pattern(Accumulator):
    """The weights themselves."""

    def __init__(self, statistic: d.Statistic, like: Tensor, n_keys: int) -> None:
        """Start empty; `like` is `[head, query]`."""
        super().__init__(statistic, like)
        self.weights = like.new_zeros(*like.shape, n_keys)

    def update(self, tile: Tile) -> None:
        """Copy the tile."""
        self.weights[:, tile.rows, tile.columns] = tile.weights

    def merge(self, other: Accumulator) -> None:
        """Add the other's rows, which are zero here."""
        assert isinstance(other, Pattern)
        self.weights += other.weights

    def finish(self, rows: Rows) -> dict[str, Tensor]:
        """NaN where a row sees no key."""
        return {"pattern": self.weights.masked_fill(~rows.seen[..., None], torch.nan)}


KINDS: dict[type[d.Statistic], type[Sum | MaxMass | TopKeys | BlockMap | Pattern]] = {
    d.Entropy: Entropy,
    d.Distance: Distance,
    d.ClippedDistance: ClippedDistance,
    d.SinkMass: FirstKeys,
    d.FirstMass: FirstKeys,
    d.LocalMass: LocalMass,
    d.MaxMass: MaxMass,
    d.TopKeys: TopKeys,
    d.Received: Received,
    d.ReceivedLate: ReceivedLate,
    d.ReceivedMax: ReceivedMax,
    d.FutureInfluence: FutureInfluence,
    d.BlockMap: BlockMap,
    d.Pattern: Pattern,
}
"""Statistics that need the weights; the others follow from the lse alone."""
