"""Receiver heads: those whose attention from afar falls on few tokens."""

from dataclasses import dataclass

import xarray as xr

from interp.capture import Capture
from interp.errors import InputError
from interp.probes.detector import Detector, site_of, statistic
from interp.probes.horizons import END, Horizon, seeing, statistic_of
from interp.probes.visibility import require_causal


@dataclass(frozen=True)
class Receivers(Detector):
    """Kurtosis, over tokens, of the attention that they receive from far behind."""

    near: int = 32
    """Queries count from so many tokens behind the key on."""
    least_queries: int = 8
    """Keys that fewer of them can see are left out."""

    name = "receiver"
    unit = "kurtosis"
    long_name = "kurtosis of received attention"
    description = (
        "How unevenly tokens receive the head's attention from far behind; 0 for a "
        "normal distribution, high where a few tokens get nearly all of it."
    )
    source = (
        "Bogdan et al., arXiv:2506.19143: there sentences, at least 4 of them back; "
        "here tokens, those of the response where the trace says which they are, else "
        "all but the first"
    )
    by_default = False

    def __post_init__(self) -> None:
        """Refuse keys that no query sees."""
        if self.near < 0 or self.least_queries < 1:
            raise InputError(
                "Receivers needs near of at least 0 tokens and least_queries of at "
                f"least 1; got {self.near} and {self.least_queries}. Usual: 32 and 8."
            )

    @property
    def horizon(self) -> Horizon:
        """From `near` tokens on, to the end of the text."""
        return self.near, None

    @property
    def needs(self) -> Capture:
        """Attention received from that far behind."""
        return Capture((statistic_of(self.horizon),), edges=None, residual=False)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Fourth moment over the square of the second, less 3; NaN where all are equal.

        Raises:
            NotCapturedError: Queries look ahead, and none is behind.
        """
        node = site_of(trace, self.site)
        require_causal(node, self.name, "queries on both sides receive")
        received = statistic(trace, "fai", self.site, near=self.near, far=END)
        counted = seeing(node, self.horizon) >= self.least_queries
        counted &= received["key"] >= max(trace.attrs.get("prompt_tokens", 1), 1)
        values = received.where(counted).astype("float64")
        off = values - values.mean("key")
        spread = (off**2).mean("key")
        return (off**4).mean("key") / spread.where(spread > 0) ** 2 - 3
