"""Attention to what a cache of first and recent tokens would drop."""

from dataclasses import dataclass

import xarray as xr

from interp.capture import Capture
from interp.kernels.definitions import LearnedSink, LocalMass, SinkMass
from interp.probes.detector import RowDetector, site_of, statistic
from interp.probes.visibility import require_causal


@dataclass(frozen=True)
class MiddleMass(RowDetector):
    """Mean mass on keys that are neither among the first nor recent.

    Over the queries that have such keys. To them no key is both first and recent, so
    what neither has is exact; a learned sink's share is on no key.
    """

    first: int = 4
    """Keys where the text begins."""
    window: int = 128
    """Keys that count as recent, the query's own included."""

    name = "middle_mass"
    unit = "fraction"
    long_name = "attention between sink and window"
    description = (
        "Mean share of attention on tokens that a cache of the first and the last "
        "tokens would drop; NaN for a text that has none."
    )
    source = (
        "What streaming heads of DuoAttention (arXiv:2410.10819) never see; no training"
    )

    @property
    def needs(self) -> Capture:
        """Mass of the first keys, of the recent ones, and of learned sinks."""
        statistics = SinkMass(self.first), LocalMass(self.window), LearnedSink()
        return Capture(statistics, edges=None, residual=False)

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Mass of every row that has something between.

        Raises:
            NotCapturedError: Queries look ahead, which the statistic counts as near.
        """
        node = site_of(trace, self.site)
        require_causal(node, self.name, "all keys ahead would count as near")
        first = statistic(trace, "sink_mass", self.site, first=self.first)
        recent = statistic(trace, "local_mass", self.site, window=self.window)
        learned = statistic(trace, "learned_sink", self.site)
        between = (1 - learned - first - recent).clip(min=0)
        return between.where(between["query"] >= self.first + self.window)
