"""Heads that attend to a key given by the token ids.

On repeated random tokens (`interp.tasks.repeated_random`) the target of a query lies
in the earlier copies, and nothing but the repetition can tell the head where. On any
other text a head's value is the mean over the queries that have a target.
"""

from dataclasses import dataclass
from typing import ClassVar

import xarray as xr

from interp.capture import Capture, TokenEdges
from interp.errors import NotCapturedError
from interp.probes.detector import REPEATED_RANDOM, TEXT, RowDetector, edge


@dataclass(frozen=True)
class EdgeDetector(RowDetector):
    """Mean mass on one kind of target key."""

    label: ClassVar[str]
    """Name of the edge in the trace."""
    first_copy: ClassVar[int] = 1
    """On repeated random tokens: the first copy whose queries count."""
    last_copy: ClassVar[int | None] = None
    """On repeated random tokens: the last copy whose queries count; None for all."""

    unit = "fraction"
    task = REPEATED_RANDOM

    @property
    def needs(self) -> Capture:
        """The edge; of the latest earlier occurrence, where there are several."""
        return Capture((), TokenEdges((self.label,)), residual=False)

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Mass of every query on its target; NaN where it has none."""
        mass = edge(trace, self.label, self.site)
        mass = mass.where(mass["query"] >= 1)
        if trace.attrs.get("task") != REPEATED_RANDOM:
            return mass
        position = mass["query"] - trace.attrs.get("prefix_length", 0)
        block = trace.attrs["block_length"]
        mass = mass.where(position >= self.first_copy * block)
        if self.last_copy is None:
            return mass
        return mass.where(position < (self.last_copy + 1) * block)


@dataclass(frozen=True)
class PreviousToken(EdgeDetector):
    """Mean mass on the key before the query."""

    name = "previous_token"
    label = "previous"
    first_copy = 0
    long_name = "previous-token attention"
    description = "Mean attention to the token just before."
    source = "Elhage et al. 2021, transformer circuits"


@dataclass(frozen=True)
class DuplicateToken(EdgeDetector):
    """Mean mass on the latest earlier key that holds the query's own token.

    Read from plain text, where it differs from `Echo`: there the words around differ
    as well. On repeated random tokens only the second copy counts: its queries have
    exactly one such key, however many the trace has summed.
    """

    name = "duplicate_token"
    label = "duplicate"
    last_copy = 1
    task = TEXT
    long_name = "duplicate-token attention"
    description = "Mean attention to the latest earlier occurrence of the same token."
    source = "Wang et al. 2022 (arXiv:2211.00593)"


@dataclass(frozen=True)
class Induction(EdgeDetector):
    """Mean mass on the key after an earlier occurrence of the query's token."""

    name = "induction"
    label = "induction"
    long_name = "induction attention"
    description = (
        "Mean attention to the token that followed earlier occurrences of the current "
        "one; 1 means all of it."
    )
    source = (
        "RazorAttention (arXiv:2407.15891), divided by the queries of the later copies"
    )


@dataclass(frozen=True)
class Echo(EdgeDetector):
    """Mean mass on the same token in all earlier copies of a repeated random block."""

    name = "echo"
    label = "duplicate"
    long_name = "echo attention"
    description = (
        "Mean attention to all earlier copies of the current token, in repeated random "
        "tokens."
    )
    source = (
        "RazorAttention (arXiv:2407.15891), divided by the queries of the later copies"
    )

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Mass of every query on the earlier copies.

        Raises:
            NotCapturedError: The trace is of another text.
        """
        if trace.attrs.get("task") != REPEATED_RANDOM:
            raise NotCapturedError(
                "echo is defined on repeated random tokens; the trace is of "
                f"{trace.attrs.get('task', 'text')!r}. Trace "
                "interp.tasks.repeated_random with its attrs, or use duplicate_token."
            )
        return super().rows(trace)
