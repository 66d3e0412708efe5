"""Statistics through the door, by every implementation that it knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from interp.app.bench.clock import require_memory
from interp.app.bench.routes import Arrays, Route, Work
from interp.kernels import statistics
from interp.kernels.definitions import (
    COLUMNS,
    ROWS,
    BlockMap,
    ClippedDistance,
    Entropy,
    Lse,
    Received,
    Statistic,
)
from interp.kernels.rules import AttentionCall

TRUSTED = "tiled"
"""The implementation that others are compared with."""

DENSE_BYTES = 32
"""Of the dense definitions, for each pair of query and key of each head."""


@dataclass(frozen=True)
class Pass:
    """Statistics that are computed together.

    Attributes:
        words: What the table calls them.
        wanted: Which they are.
        given: Whether the row log-sum-exp is at hand.
    """

    words: str
    wanted: tuple[Statistic, ...]
    given: bool = True


BASIC = (Entropy(), ClippedDistance(), Received())

PASSES = {
    "all": Pass("rows and columns, lse given", (*ROWS, *COLUMNS)),
    "basic": Pass("entropy, clipped distance, received; lse given", BASIC),
    "rows": Pass("rows, lse given", ROWS),
    "columns": Pass("columns, lse given", COLUMNS),
    "all-alone": Pass("rows and columns without lse", (*ROWS, *COLUMNS), False),
    "lse": Pass("lse only", (Lse(),), False),
    "blocks": Pass("block maps, lse given", (BlockMap(),)),
}
"""By the name that `--passes` takes."""


class Yardstick:
    """Arrays of the trusted implementation on one call, each pass computed once."""

    def __init__(self, call: AttentionCall, lse: Tensor) -> None:
        self.call, self.lse = call, lse
        self._known: dict[str, Arrays] = {}

    def __call__(self, name: str) -> Arrays:
        """Arrays of the pass of that name."""
        if name not in self._known:
            with torch.no_grad():
                self._known[name] = work(self.call, self.lse, PASSES[name], TRUSTED)()
        return self._known[name]


def pass_routes(
    call: AttentionCall, lse: Tensor, names: Sequence[str], yardstick: Yardstick
) -> list[Route]:
    """Every implementation on every pass of these names."""
    return [
        Route(
            impl,
            f"{impl}: {PASSES[name].words}",
            partial(work, call, lse, PASSES[name], impl),
            lambda arrays: arrays,
            partial(yardstick, name),
        )
        for name in names
        for impl in statistics.IMPLEMENTATIONS
    ]


def work(call: AttentionCall, lse: Tensor, what: Pass, impl: str) -> Work:
    """A pass by one implementation.

    Raises:
        MemoryError: The dense definitions would not fit.
    """
    if impl == "reference":
        pairs = call.n_heads * call.mask.query_length * call.mask.key_length
        require_memory(DENSE_BYTES * pairs, "the dense map", call.query.device)
    given = lse if what.given else None
    return partial(statistics.compute, call, what.wanted, lse=given, impl=impl)
