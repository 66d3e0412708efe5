"""What a trace records."""

from collections.abc import Sequence
from dataclasses import dataclass

from interp.kernels.definitions import (
    COLUMNS,
    ROWS,
    Statistic,
    merged,
)


@dataclass(frozen=True)
class TokenEdges:
    """Edges that follow from the token ids: known once the text is.

    `previous` is the key before the query; `duplicate` an earlier key that holds the
    query's own token; `induction` the key after such a one. `copies` counts how many
    earlier occurrences are summed, the latest first.
    """

    kinds: tuple[str, ...] = ("previous", "duplicate", "induction")
    copies: int = 1


@dataclass(frozen=True)
class Capture:
    """Statistics of every head, and optionally the residual stream.

    Attributes:
        statistics: Computed together, in the fewest passes.
        edges: Edges derived from the token ids, or None.
        residual: Record norm, maximum, median and cosine to the first token of the
            residual stream, and what the two halves of each block wrote to its
            largest channel.
        vectors: Record query and key of every head as attended, and the rules between
            them, from which `interp.long_map_of` rebuilds any part of any map. They
            take 4 bytes for each token, channel, head and KV head of every layer.
    """

    statistics: tuple[Statistic, ...] = (*ROWS, *COLUMNS)
    edges: TokenEdges | None = TokenEdges()
    residual: bool = True
    vectors: bool = False

    def __or__(self, other: "Capture") -> "Capture":
        """The union of two captures."""
        statistics = merged((*self.statistics, *other.statistics))
        edges = self.edges or other.edges
        if self.edges and other.edges:
            kinds = dict.fromkeys((*self.edges.kinds, *other.edges.kinds))
            copies = max(self.edges.copies, other.edges.copies)
            edges = TokenEdges(tuple(kinds), copies)
        return Capture(
            statistics,
            edges,
            self.residual or other.residual,
            self.vectors or other.vectors,
        )


def union(captures: Sequence[Capture]) -> Capture:
    """The union of all captures; an empty sequence records nothing."""
    result = Capture((), None, residual=False)
    for capture in captures:
        result = result | capture
    return result
