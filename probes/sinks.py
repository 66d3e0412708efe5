"""Attention sinks: keys that many heads attend to, whatever the query.

A learned sink (a logit without a key, as in gpt-oss) is measured apart: its share is
missing from the rows, so no key received it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from interp.capture import Capture
from interp.errors import InputError
from interp.kernels.definitions import FirstMass, LearnedSink, Received
from interp.probes.detector import Detector, RowDetector, site_of, statistic
from interp.probes.visibility import sees_first_key, visible_queries

EPSILON = 0.3
"""Received mass above which a key counts as a sink (arXiv:2410.10781)."""

ACT_FIXED = 0.1
"""The same in the code of ACT (arXiv:2406.15765)."""
ACT_MULTIPLE = 5.0
"""The same in its paper, times 1/N; 3 and 7 are tried there too."""

MIN_QUERIES = 8
"""A key seen by fewer queries is left out: the last keys look like sinks of heads
that attend to themselves."""


@dataclass(frozen=True)
class Sinks(RowDetector):
    """Mean mass on the first key, over the later queries that can see it."""

    name = "sinks"
    unit = "fraction"
    long_name = "first-token sink"
    description = (
        "Mean share of attention that the first token takes; 1 means the head looks "
        "at nothing else."
    )
    source = (
        "arXiv:2309.17453; row 0 and rows whose window excludes the key are left out"
    )

    @property
    def needs(self) -> Capture:
        """First mass."""
        return Capture((FirstMass(),), edges=None, residual=False)

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """First mass of every row but the first."""
        mass = statistic(trace, "first_mass", self.site)
        return mass.where(sees_first_key(site_of(trace, self.site)))


@dataclass(frozen=True)
class SinksAnywhere(Detector):
    """Largest mean mass that a key other than the first receives."""

    min_queries: int = MIN_QUERIES

    name = "sinks_anywhere"
    unit = "fraction"
    long_name = "strongest later sink"
    description = (
        "Largest mean attention that any token but the first receives from the queries "
        "that can see it."
    )
    source = "arXiv:2410.10781, any key; keys seen by few queries are left out"

    @property
    def needs(self) -> Capture:
        """Received mass."""
        return Capture((Received(),), edges=None, residual=False)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Largest received mass of the keys that count; NaN where none does."""
        return self._candidates(trace).max("key")

    def keys(self, trace: xr.DataTree) -> xr.DataArray:
        """The key of the largest mass, the first on ties; -1 where none counts."""
        masses = self._candidates(trace)
        index = masses.fillna(float("-inf")).argmax("key")
        key = (
            masses["key"]
            .isel(key=index)
            .drop_vars(("key", "key_token"), errors="ignore")
        )
        return (
            key.where(masses.notnull().any("key"), -1)
            .astype("int64")
            .rename("sink_key")
            .assign_attrs(units="index", long_name="key of the strongest later sink")
        )

    def _candidates(self, trace: xr.DataTree) -> xr.DataArray:
        masses = seen_received(trace, self.min_queries, self.site)
        return masses.where(masses["key"] > 0)


@dataclass(frozen=True)
class LaterSinks(Detector):
    """Number of tokens, other than the first, that are sinks of a head.

    `LaterSinks()` has the threshold of ACT's code, `LaterSinks(ACT_MULTIPLE,
    relative=True)` that of its paper.
    """

    epsilon: float = ACT_FIXED
    relative: bool = False
    min_queries: int = MIN_QUERIES

    name = "later_sinks"
    unit = "tokens"
    long_name = "later sinks"
    description = (
        "Number of tokens but the first that receive more than epsilon of the head's "
        "attention from the queries that can see them."
    )
    source = (
        "arXiv:2406.15765, by the index of the token; keys seen by few queries are "
        "left out"
    )

    @property
    def needs(self) -> Capture:
        """Received mass."""
        return Capture((Received(),), edges=None, residual=False)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """The number; NaN where no key counts."""
        later = are_sinks(
            trace, self.epsilon, self.relative, self.min_queries, self.site
        )
        later = later.where(later["key"] > 0)
        return later.sum("key", min_count=1, dtype="float64")


@dataclass(frozen=True)
class LearnedSinks(RowDetector):
    """Mean share that the head's learned sink logit takes; 0 where it has none."""

    name = "learned_sinks"
    unit = "fraction"
    long_name = "learned sink"
    description = (
        "Mean share of attention that a learned sink takes from the tokens; 0 "
        "in models without one."
    )
    source = "gpt-oss: sigmoid(sink - lse)"

    @property
    def needs(self) -> Capture:
        """Share of the learned sink."""
        return Capture((LearnedSink(),), edges=None, residual=False)

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Share of every row."""
        return statistic(trace, "learned_sink", self.site)


@dataclass(frozen=True)
class SinkTokens(Detector):
    """Share of a layer's heads for which a token is a sink."""

    epsilon: float = EPSILON
    relative: bool = False
    """Whether epsilon counts in 1/N, for the N tokens of the text."""
    min_queries: int = MIN_QUERIES

    name = "sink_tokens"
    unit = "fraction"
    long_name = "share of heads with a sink here"
    description = (
        "Share of the layer's heads that give this token more than epsilon of their "
        "attention; NaN for the last tokens, which too few queries see."
    )
    source = "arXiv:2410.10781, per layer and key"
    dims = ("layer", "key")

    @property
    def needs(self) -> Capture:
        """Received mass."""
        return Capture((Received(),), edges=None, residual=False)

    def heads(self, trace: xr.DataTree) -> xr.DataArray:
        """Whether the key is a sink of the head; False where too few queries see it."""
        return (self._sinks(trace) == 1).rename("is_sink")

    def cells(self, trace: xr.DataTree) -> pd.DataFrame:
        """Every sink of every head.

        Returns:
            Columns layer, head, key, key_token and received, in this order, with a
            first column sample for a batch; in order of these.
        """
        received = statistic(trace, "received", self.site)
        values = {"received": received}
        if "key_token" in received.coords:
            values = {"key_token": received["key_token"], **values}
        return cells_where(self.heads(trace), values)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Share over the heads that the layer has."""
        return self._sinks(trace).mean("head", dtype="float64")

    def _sinks(self, trace: xr.DataTree) -> xr.DataArray:
        return are_sinks(
            trace, self.epsilon, self.relative, self.min_queries, self.site
        )


def sink_metric(
    trace: xr.DataTree,
    key: int = 0,
    epsilon: float = EPSILON,
    site: str | None = None,
    *,
    each_text: bool = False,
) -> xr.DataArray:
    """Percentage of heads for which a key is a sink, Sink_k^epsilon.

    It falls as texts grow: compare only equal lengths (the paper uses 64 tokens).

    Args:
        trace: One text, or a batch, over which the metric is averaged.
        key: Index of the key.
        epsilon: Received mass above which the key is a sink.
        site: Attention site; None takes `self`, else `encoder`.
        each_text: Keep the texts of a batch apart.

    Returns:
        A number in [0, 100], or one for each `sample`; attrs say epsilon, key and the
        number of tokens.

    Raises:
        InputError: The trace has no such key.
        NotCapturedError: The trace lacks `received`.

    Source:
        Gu et al. (arXiv:2410.10781).
    """
    received = statistic(trace, "received", site)
    if key not in received["key"].values:
        raise InputError(
            f"Asked for the sink metric of key {key}; the trace has keys 0 to "
            f"{received.sizes['key'] - 1}. Choose one of them."
        )
    masses = received.sel(key=key, drop=True)
    over = ["layer", "head"] if each_text else None
    share = (masses > epsilon).where(masses.notnull()).mean(over, dtype="float64")
    return (
        (100 * share)
        .rename("sink_metric")
        .assign_attrs(
            units="% of heads",
            long_name=f"Sink metric of key {key}",
            source="arXiv:2410.10781",
            key=key,
            epsilon=epsilon,
            n_tokens=received.sizes["key"],
        )
    )


def are_sinks(
    trace: xr.DataTree,
    epsilon: float,
    relative: bool = False,
    min_queries: int = MIN_QUERIES,
    site: str | None = None,
) -> xr.DataArray:
    """Which keys of a head are sinks.

    Args:
        trace: One text, or a batch.
        epsilon: Received mass above which a key is a sink.
        relative: Whether epsilon counts in 1/N, for the N tokens of the text.
        min_queries: Queries that have to see a key.
        site: Attention site; None takes `self`, else `encoder`.

    Returns:
        Over (layer, head, key): 1 or 0, NaN where fewer queries see the key.

    Raises:
        NotCapturedError: The trace lacks `received`.
    """
    masses = seen_received(trace, min_queries, site)
    n_tokens = masses.coords.get("key_length", masses.sizes["key"])
    threshold = epsilon / n_tokens if relative else epsilon
    return (masses > threshold).where(masses.notnull())


def cells_where(
    holds: xr.DataArray, values: Mapping[str, xr.DataArray]
) -> pd.DataFrame:
    """The cells where `holds` is true, as rows.

    Returns:
        A column for each dimension of `holds` and one for each of `values`, which may
        lack some of these dimensions.
    """
    at = np.nonzero(holds.values)
    places = {
        str(dim): holds[dim].values[index]
        for dim, index in zip(holds.dims, at, strict=True)
    }
    found = {
        name: each.broadcast_like(holds).transpose(*holds.dims).values[at]
        for name, each in values.items()
    }
    return pd.DataFrame(places | found)


def seen_received(
    trace: xr.DataTree, min_queries: int = MIN_QUERIES, site: str | None = None
) -> xr.DataArray:
    """Received mass of every key; NaN where fewer than `min_queries` see it."""
    received = statistic(trace, "received", site)
    return received.where(visible_queries(site_of(trace, site)) >= min_queries)
