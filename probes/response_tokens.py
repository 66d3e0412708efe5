"""Look-back and later influence of every token, as detectors of any trace."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import xarray as xr

from interp.capture import Capture
from interp.kernels.definitions import ClippedDistance, Received
from interp.probes.detector import HEADS, Detector, site_of, statistic
from interp.probes.horizons import Horizon, influence, statistic_of
from interp.probes.locality import GlobalHead
from interp.probes.reach import GLOBAL, LOCAL, Span
from interp.probes.visibility import require_causal


@dataclass(frozen=True)
class _MeanMap(Detector):
    """What the mean map over local or global heads says of every token."""

    share: float = 0.3
    """Share of heads on either side."""
    exclude_sink: bool = False
    """Tell the sides by the distance without the first key."""

    side: ClassVar[int]
    by_default = False

    @property
    def needs(self) -> Capture:
        """What tells the sides, and what is averaged over one."""
        return self._span.needs | Capture(self._statistics, None, residual=False)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Mean over the heads of the side, of the response where there is one.

        Raises:
            NotCapturedError: Queries look ahead, and none comes later.
        """
        node = site_of(trace, self.site)
        require_causal(node, self.name, "no token is read before the others")
        labels = GlobalHead(self.share).finish(self._span.measure(trace))
        values = self._values(trace, node)
        mean = values.where(labels == self.side).mean(HEADS, dtype="float64")
        return mean.where(mean[self.dims[0]] >= trace.attrs.get("prompt_tokens", 0))

    @property
    def _span(self) -> Span:
        return Span(self.exclude_sink, site=self.site)

    @property
    @abstractmethod
    def _statistics(self) -> tuple: ...

    @abstractmethod
    def _values(self, trace: xr.DataTree, node: xr.DataTree) -> xr.DataArray: ...


@dataclass(frozen=True)
class WaadTokens(_MeanMap):
    """Windowed average attention distance of local heads."""

    clip: int = 10
    """W: distances count up to so many tokens."""

    name = "waad_tokens"
    unit = "tokens"
    long_name = "windowed average attention distance"
    description = (
        "How far back local heads look from the token, up to a few tokens; peaks are "
        "where the text turns to something else."
    )
    source = "arXiv:2510.13554 Def. 4.1"
    dims = ("query",)
    side = LOCAL

    @property
    def _statistics(self) -> tuple[ClippedDistance]:
        return (ClippedDistance(self.clip),)

    def _values(self, trace: xr.DataTree, node: xr.DataTree) -> xr.DataArray:
        return statistic(trace, "waad", self.site, clip=self.clip)


@dataclass(frozen=True)
class FaiTokens(_MeanMap):
    """Future attention influence by global heads."""

    near: int = 0
    """Queries count from so many tokens behind the token on."""
    far: int | None = None
    """... and up to so many; None to the end of the text."""

    name = "fai_tokens"
    unit = "fraction"
    long_name = "future attention influence"
    description = (
        "How much global heads look at the token from later ones; peaks are anchors "
        "that later tokens come back to."
    )
    source = "arXiv:2510.13554 Def. 4.2, to the end of the text as in its analysis"
    dims = ("key",)
    side = GLOBAL

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """As every detector; no end is written as such."""
        return super().labelled(values).assign_attrs(far=self.far or "end")

    @property
    def _horizon(self) -> Horizon:
        return self.near, self.far

    @property
    def _statistics(self) -> tuple:
        if self._horizon == (0, None):
            return (Received(),)
        return (statistic_of(self._horizon),)

    def _values(self, trace: xr.DataTree, node: xr.DataTree) -> xr.DataArray:
        (wanted,) = self._statistics
        values = statistic(trace, wanted.name, self.site, **wanted.parameters)
        return influence(values, node, self._horizon)
