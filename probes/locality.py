"""How far back a head looks."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from interp.capture import Capture
from interp.errors import InputError
from interp.kernels import definitions
from interp.kernels.definitions import FirstMass, LearnedSink, LocalMass
from interp.probes.detector import HEADS, Detector, RowDetector, site_of, statistic
from interp.probes.visibility import require_causal, visible_keys

LEAST_REST = 1e-3
"""Mass outside the first key below which a row says nothing about the other keys."""


@dataclass(frozen=True)
class Distance(RowDetector):
    """Mean distance between a query and the keys it attends to.

    Grows with the text: compare heads only on the same texts. The first-token sink
    dominates it; `exclude_sink` drops the first key and renormalizes the row, which
    needs no weights: that key's part of the distance is its mass times the query's
    index. Rows with next to nothing elsewhere are then left out.
    """

    exclude_sink: bool = False

    name = "distance"
    unit = "tokens"
    long_name = "mean attention distance"
    description = (
        "How many tokens back the head looks, on average; below 0, it looks ahead."
    )
    source = "arXiv:2510.13554 Eq. 7; the first row is left out"

    @property
    def needs(self) -> Capture:
        """Distance; the mass of the first key and of learned sinks to exclude them."""
        others = (FirstMass(), LearnedSink()) if self.exclude_sink else ()
        statistics = (definitions.Distance(), *others)
        return Capture(statistics, edges=None, residual=False)

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Distance of every row but the first."""
        distance = statistic(trace, "distance", self.site)
        if self.exclude_sink:
            first = statistic(trace, "first_mass", self.site)
            rest = 1 - first - statistic(trace, "learned_sink", self.site)
            distance = distance - first * distance["query"]
            distance = distance / rest.where(rest > LEAST_REST)
        return distance.where(distance["query"] >= 1)


@dataclass(frozen=True)
class Entropy(RowDetector):
    """Mean entropy of a query's attention; of 1 at most if normalized."""

    normalized: bool = False
    """Divide by the logarithm of the number of keys that the query sees."""

    name = "entropy"
    unit = "nats"
    long_name = "attention entropy"
    description = "How spread the attention is; exp of it is about a number of tokens."
    source = "-sum p ln p; the first row is left out"

    @property
    def needs(self) -> Capture:
        """Entropy."""
        return Capture((definitions.Entropy(),), edges=None, residual=False)

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Entropy of every row but the first."""
        entropy = statistic(trace, "entropy", self.site)
        if self.normalized:
            keys = visible_keys(site_of(trace, self.site))
            entropy = entropy / np.log(keys.where(keys > 1))
        return entropy.where(entropy["query"] >= 1)

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """As every detector, with the unit that the option gives."""
        labelled = super().labelled(values)
        return labelled.assign_attrs(units="fraction") if self.normalized else labelled


@dataclass(frozen=True)
class Local(RowDetector):
    """Mean mass on the latest keys, over the queries that see keys further back."""

    window: int = 128
    """Keys that count as near, the query's own included."""

    name = "local"
    unit = "fraction"
    long_name = "attention within the window"
    description = (
        "Mean share of attention on the last tokens, over the queries that could look "
        "further; NaN for a text no longer than the window."
    )
    source = "sum of p within the window; rows shorter than it would all be 1"

    @property
    def needs(self) -> Capture:
        """Local mass of that window."""
        return Capture((LocalMass(self.window),), edges=None, residual=False)

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Local mass of every row longer than the window.

        Raises:
            NotCapturedError: Queries look ahead, which the statistic counts as near.
        """
        node = site_of(trace, self.site)
        require_causal(node, "local", "all keys ahead would count as near")
        mass = statistic(trace, "local_mass", self.site, window=self.window)
        return mass.where(mass["query"] >= self.window)


@dataclass(frozen=True)
class GlobalHead(Detector):
    """Heads that look furthest and nearest, of all heads of the model."""

    share: float = 0.3
    """Share of heads called global, and share called local; at most a half."""
    exclude_sink: bool = False
    """Rank by the distance without the first key."""

    name = "global_head"
    unit = "label"
    long_name = "local or global head"
    description = (
        "+1 for the heads that look furthest, -1 for those that look nearest, 0 for "
        "the rest; by mean distance over all heads."
    )
    source = "arXiv:2510.13554 section 3: lowest and highest 30 % of distance"

    def __post_init__(self) -> None:
        """Refuse shares that overlap."""
        if not 0 < self.share <= 0.5:
            raise InputError(
                "GlobalHead needs a share above 0 and at most 0.5; got "
                f"{self.share}. The paper uses 0.3."
            )

    @property
    def needs(self) -> Capture:
        """What the distance needs."""
        return self._distance.needs

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Mean distance, which averages over texts.

        Raises:
            NotCapturedError: Queries look ahead, and distances cancel.
        """
        node = site_of(trace, self.site)
        require_causal(node, "global_head", "distances back and ahead would cancel")
        return self._distance.measure(trace)

    def finish(self, measured: xr.DataArray) -> xr.DataArray:
        """-1, 0 or 1 by rank over all heads; NaN where there is no head."""
        return xr.apply_ufunc(
            _split,
            measured,
            kwargs={"share": self.share},
            input_core_dims=[HEADS],
            output_core_dims=[HEADS],
            vectorize=True,
        )

    @property
    def _distance(self) -> Distance:
        return Distance(self.exclude_sink, site=self.site)


def _split(distance: np.ndarray, share: float) -> np.ndarray:
    """Labels by rank; heads that tie across a border are on neither side."""
    ranks = rankdata(distance, axis=None, nan_policy="omit").reshape(distance.shape)
    n_heads = np.isfinite(distance).sum()
    each = int(share * n_heads + 1e-9)  # 0.29 * 100 is 28.999...
    labels = (ranks >= n_heads + 1 - each).astype(float) - (ranks <= each)
    return np.where(np.isfinite(distance), labels, np.nan)
