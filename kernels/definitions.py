"""What each statistic is: its arrays, their axes, units and parameters.

Nothing is computed here. `reference` computes every statistic densely, `tiled`
without the query x key map; both read these definitions. Throughout, `p` is the
attention weight, `pos` the absolute position, and a row is one query's weights.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from interp.kernels.errors import ShapeError
from interp.kernels.masks import MaskRule

QUERY = ("layer", "head", "query")
KEY = ("layer", "head", "key")
RANK = (*QUERY, "rank")

MOST_RANKS = 64
"""Keys of a row that `TopKeys` names, at most."""


@dataclass(frozen=True)
class Array:
    """One array that a statistic fills."""

    name: str
    dims: tuple[str, ...]
    unit: str
    long_name: str
    integer: bool = False
    """True where values are indices, a statistic's of keys; -1 means "no value"."""


@dataclass(frozen=True)
class Statistic:
    """A quantity of every head; its fields are its parameters."""

    arrays: ClassVar[tuple[Array, ...]]
    source: ClassVar[str] = ""
    positional: ClassVar[bool] = False
    """True if it compares positions of query and key, which no cross-attention has."""

    @property
    def name(self) -> str:
        """Name of the statistic, that of its first array."""
        return self.arrays[0].name

    @property
    def parameters(self) -> dict[str, int]:
        """The parameters that the arrays' attributes carry."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def narrow(self, sample: int, queries: slice, keys: slice) -> "Statistic":
        """The statistic for some queries and keys of one sample."""
        return self

    def _at_least(self, field: str, least: int, most: float = math.inf) -> None:
        value = getattr(self, field)
        if not isinstance(value, int) or not least <= value <= most:
            limit = "" if most == math.inf else f" and at most {most}"
            raise ShapeError(
                f"{type(self).__name__} needs {field} of at least {least}{limit}; "
                f"got {value!r}. Pass a whole number of tokens."
            )


@dataclass(frozen=True)
class Lse(Statistic):
    """log of the sum over visible keys of exp(score); no learned sink in it."""

    arrays = (Array("lse", QUERY, "nats", "log-sum-exp of the scores"),)


@dataclass(frozen=True)
class Entropy(Statistic):
    """-sum p ln p over the visible keys."""

    arrays = (Array("entropy", QUERY, "nats", "entropy of the row"),)


@dataclass(frozen=True)
class Distance(Statistic):
    """sum p (pos_query - pos_key): how far back the head looks."""

    arrays = (Array("distance", QUERY, "tokens", "mean attention distance"),)
    source = "arXiv:2510.13554 Eq. 7, per query"
    positional = True


@dataclass(frozen=True)
class ClippedDistance(Statistic):
    """sum p min(pos_query - pos_key, clip): windowed average attention distance."""

    clip: int = 10
    arrays = (Array("waad", QUERY, "tokens", "windowed average attention distance"),)
    source = "arXiv:2510.13554 Def. 4.1"
    positional = True

    def __post_init__(self) -> None:
        """Refuse a clip below one token."""
        self._at_least("clip", 1)


@dataclass(frozen=True)
class SinkMass(Statistic):
    """sum of p over the first keys of the sequence."""

    first: int = 4
    arrays = (Array("sink_mass", QUERY, "fraction", "mass on the first keys"),)
    source = "arXiv:2309.17453"

    def __post_init__(self) -> None:
        """Refuse fewer than one key."""
        self._at_least("first", 1)


@dataclass(frozen=True)
class FirstMass(Statistic):
    """p on the first key of the sequence."""

    arrays = (Array("first_mass", QUERY, "fraction", "mass on the first key"),)
    source = "arXiv:2410.10781"


@dataclass(frozen=True)
class LearnedSink(Statistic):
    """Share that a learned sink logit takes from the row; 0 where there is none."""

    arrays = (Array("learned_sink", QUERY, "fraction", "share of the learned sink"),)
    source = "gpt-oss: sigmoid(sink - lse)"


@dataclass(frozen=True)
class LocalMass(Statistic):
    """sum of p with pos_query - pos_key < window."""

    window: int = 128
    arrays = (Array("local_mass", QUERY, "fraction", "mass within the window"),)
    positional = True

    def __post_init__(self) -> None:
        """Refuse a window below one token."""
        self._at_least("window", 1)


@dataclass(frozen=True)
class MaxMass(Statistic):
    """The largest p of the row and the key that has it (the first, on ties)."""

    arrays = (
        Array("max_mass", QUERY, "fraction", "largest weight of the row"),
        Array("max_key", QUERY, "index", "key of the largest weight", integer=True),
    )


@dataclass(frozen=True)
class TopKeys(Statistic):
    """The k largest p of the row, descending, and their keys (the first, on ties).

    There are k ranks always; those beyond the keys that the row sees are NaN and -1.
    """

    k: int = 8
    arrays = (
        Array("top_mass", RANK, "fraction", "largest weights of the row"),
        Array("top_key", RANK, "index", "keys of the largest weights", integer=True),
    )

    def __post_init__(self) -> None:
        """Refuse no keys, and more than are worth naming."""
        self._at_least("k", 1, MOST_RANKS)


@dataclass(frozen=True)
class Received(Statistic):
    """sum_query p / number of queries that can see the key."""

    arrays = (Array("received", KEY, "fraction", "mean attention received"),)
    source = "arXiv:2306.14048 accumulates the sum; divided by the queries as in "
    source += "arXiv:2410.10781"


@dataclass(frozen=True)
class ReceivedLate(Statistic):
    """sum p / number of queries that can see the key, over the last queries only."""

    last: int = 32
    arrays = (
        Array("received_late", KEY, "fraction", "mean attention of the last queries"),
    )
    source = "arXiv:2404.14469 sums over its observation window; divided by the queries"

    def __post_init__(self) -> None:
        """Refuse fewer than one query."""
        self._at_least("last", 1)


@dataclass(frozen=True)
class ReceivedMax(Statistic):
    """max_query p: the most that any query gives to the key."""

    arrays = (Array("received_max", KEY, "fraction", "largest attention received"),)


@dataclass(frozen=True)
class FutureInfluence(Statistic):
    """mean p over queries with near <= pos_query - pos_key <= far."""

    near: int = 10
    far: int = 50
    arrays = (Array("fai", KEY, "fraction", "future attention influence"),)
    source = "arXiv:2510.13554 Def. 4.2"
    positional = True

    def __post_init__(self) -> None:
        """Refuse an empty horizon."""
        self._at_least("near", 0)
        self._at_least("far", self.near)


@dataclass(frozen=True)
class Norms(Statistic):
    """|k| and |v|: of the vectors that a head attends with, grouped ones repeated."""

    arrays = (
        Array("key_norm", KEY, "activation", "L2 norm of the key"),
        Array("value_norm", KEY, "activation", "L2 norm of the value"),
    )
    source = "arXiv:2410.10781"


@dataclass(frozen=True)
class Edges(Statistic):
    """Sum of p over named target keys of each query; NaN where a query has none.

    `targets` holds one `(label, rows)` per edge: `rows` is an integer tensor
    `[query, target]` or `[batch, query, target]` of key indices, -1 for none.
    A plain integer n instead of a tensor means "the key n tokens back".
    """

    targets: tuple[tuple[str, object], ...] = ()
    arrays = (Array("edges", (*QUERY, "edge"), "fraction", "mass on the named keys"),)

    @property
    def parameters(self) -> dict[str, int]:
        """Labels are the `edge` coordinate; there is no scalar parameter."""
        return {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names along the `edge` axis."""
        return tuple(label for label, _ in self.targets)

    def narrow(self, sample: int, queries: slice, keys: slice) -> "Edges":
        """The edges of some queries, their targets counted from `keys.start`."""
        own = []
        for label, rows in self.targets:
            if not isinstance(rows, int):
                rows = torch.as_tensor(rows)
                rows = rows[None] if rows.dim() == 2 else rows
                rows = rows[sample if len(rows) > 1 else 0][queries]
                inside = (rows >= keys.start) & (rows < keys.stop)
                rows = (rows - keys.start).masked_fill(~inside, -1)
            own.append((label, rows))
        return Edges(tuple(own))

    def resolve(self, mask: MaskRule, device: torch.device) -> list[Tensor]:
        """Key indices of each edge, `[batch or 1, query, target]`, -1 for none.

        Raises:
            ShapeError: A tensor of targets has not one row for each query.
        """
        resolved = []
        for label, rows in self.targets:
            if isinstance(rows, int):
                place = torch.arange(mask.query_length, device=device)
                index = place + (mask.query_offset - rows)
                index = index.masked_fill(index < mask.start, -1)
                rows = (index - mask.key_offset).clamp(min=-1)[:, None]
            rows = torch.as_tensor(rows, device=device)
            rows = rows[None] if rows.dim() == 2 else rows
            if rows.dim() != 3 or rows.shape[1] != mask.query_length:
                raise ShapeError(
                    f"Edge {label!r} needs targets [query, target] for "
                    f"{mask.query_length} queries; got shape {tuple(rows.shape)}. "
                    "Pass one row of key indices for each query, -1 for none."
                )
            resolved.append(rows.masked_fill(rows >= mask.key_length, -1))
        return resolved


@dataclass(frozen=True)
class BlockMap(Statistic):
    """Mean over visible pairs, and maximum, of p in blocks of size x size."""

    size: int = 64
    arrays = (
        Array(
            "block_mean",
            ("layer", "head", "query_block", "key_block"),
            "fraction",
            "mean weight of the block",
        ),
        Array(
            "block_max",
            ("layer", "head", "query_block", "key_block"),
            "fraction",
            "largest weight of the block",
        ),
    )

    def __post_init__(self) -> None:
        """Refuse empty blocks."""
        self._at_least("size", 1)


@dataclass(frozen=True)
class Pattern(Statistic):
    """The weights themselves: query x key numbers a head, only on request."""

    arrays = (
        Array(
            "pattern", ("layer", "head", "query", "key"), "fraction", "attention weight"
        ),
    )


ROWS = (
    Lse(),
    Entropy(),
    Distance(),
    ClippedDistance(),
    SinkMass(),
    FirstMass(),
    LearnedSink(),
    LocalMass(),
    MaxMass(),
)
"""Every row statistic of one number a row, with default parameters."""

COLUMNS = (Received(), ReceivedMax(), FutureInfluence())
"""Every column statistic, with default parameters."""

STATISTICS: dict[str, type[Statistic]] = {
    array.name: kind
    for kind in (
        *(type(statistic) for statistic in (*ROWS, *COLUMNS)),
        TopKeys,
        ReceivedLate,
        Norms,
        Edges,
        BlockMap,
        Pattern,
    )
    for array in kind.arrays
}
"""Each array's name and the statistic that fills it."""


def late(mask: MaskRule, last: int) -> MaskRule:
    """The rule of one sample's last queries; one object for each number of them."""
    n_queries = mask.query_length
    first = max(n_queries - last, 0)
    return mask.kept(("late", last), lambda: mask.rows(first, n_queries))


def merged(statistics: Iterable[Statistic]) -> tuple[Statistic, ...]:
    """The statistics without repeats, in order of first mention.

    Raises:
        ShapeError: Two of one kind differ in a parameter; an array has one name.
    """
    kept: dict[type[Statistic], Statistic] = {}
    for statistic in statistics:
        known = kept.setdefault(type(statistic), statistic)
        if known != statistic:
            raise ShapeError(
                f"One capture holds one {known.name}; asked for {known} and "
                f"{statistic}. Make two traces, or choose one."
            )
    return tuple(kept.values())
