"""Heads that copy what was asked for out of a long text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr

from interp.kernels.definitions import Edges, Statistic, TopKeys
from interp.probes.copying import copied_keys, copied_share
from interp.probes.needle_runs import NeedleRuns


@dataclass(frozen=True)
class RetrievalHeads(NeedleRuns):
    """How much of a needle each head copies while the model answers.

    At each step of decoding a head copies a token of the needle if the key that it
    attends to most lies in the needle and holds the token that is generated.
    """

    top: int = 1
    """Most attended keys that are looked at; the paper takes 1."""
    released: bool = False
    """Count tokens as often as they are copied, as the released code does."""

    name = "retrieval"
    unit = "fraction"
    long_name = "retrieval score"
    description = (
        "Share of a needle's tokens that the head copies while the model answers, over "
        "runs in which it finds the needle; 0.1 makes a retrieval head."
    )
    source = (
        "Retrieval heads (arXiv:2404.15574): copied tokens as a set of positions, each "
        "once; the needle located exactly, recall without stemming; needles are ours"
    )
    by_default = True

    @property
    def _deciding(self) -> tuple[str, ...]:
        return (*super()._deciding, "top", "released")

    def statistics(self, span: tuple[int, int]) -> Sequence[Statistic]:
        """The most attended keys."""
        return (TopKeys(self.top),)

    def score(
        self, steps: xr.Dataset, ids: Sequence[int], span: tuple[int, int]
    ) -> xr.DataArray:
        """Share of the needle that is copied."""
        copied = copied_keys(steps["top_key"], ids, span)
        return copied_share(copied, span, released=self.released)


@dataclass(frozen=True)
class SoftRetrieval(NeedleRuns):
    """Mean mass on the needle at the steps that generate one of its tokens."""

    name = "retrieval_soft"
    unit = "fraction"
    long_name = "attention to the needle while copying"
    description = (
        "Mean attention to all of a needle at the steps that generate one of its "
        "tokens, over runs in which the model finds it."
    )
    source = "The runs of retrieval heads (arXiv:2404.15574); mass instead of argmax"

    def statistics(self, span: tuple[int, int]) -> Sequence[Statistic]:
        """Mass on the needle."""
        return (Edges((("needle", torch.arange(*span)[None]),)),)

    def score(
        self, steps: xr.Dataset, ids: Sequence[int], span: tuple[int, int]
    ) -> xr.DataArray:
        """Mean over the steps whose token is in the needle; NaN without any."""
        needle = set(ids[slice(*span)])
        rows = steps["query"].values
        copying = [query for query in rows if ids[query + 1] in needle]
        # A needle behind a sliding window is not seen, which is no mass.
        mass = steps["edges"].sel(edge="needle", query=copying, drop=True).fillna(0)
        return mass.mean("query", dtype="float64")
