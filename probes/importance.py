"""How much each token matters as a key: the scores by which caches are cut.

Every score is about all queries of the trace at once. Who keeps keys while a text grows
must score them from the queries so far: trace the text up to there.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.ndimage import convolve1d, maximum_filter1d

from interp.capture import Capture
from interp.errors import InputError
from interp.kernels.definitions import Received, ReceivedLate
from interp.probes.detector import Detector, site_of, statistic
from interp.probes.retention import kept_keys
from interp.probes.visibility import length, require_causal, visible_queries

TOKENS = ("layer", "head", "key")


@dataclass(frozen=True)
class AccumulatedAttention(Detector):
    """Attention that a key receives in all, from every query."""

    fair: bool = False
    """Divide by the number of queries that can see the key: early keys are seen by
    more of them."""

    name = "accumulated_attention"
    unit = "queries"
    long_name = "accumulated attention"
    description = (
        "Attention that the token receives from all queries together, counted in whole "
        "rows; it favours early tokens unless it is divided by the queries."
    )
    source = "H2O, arXiv:2306.14048: column sums over the prompt, each head its own"
    dims = TOKENS

    @property
    def needs(self) -> Capture:
        """Received mass."""
        return Capture((Received(),), edges=None, residual=False)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Column sums, or means over the queries that can see the key."""
        received = statistic(trace, "received", self.site)
        if self.fair:
            return received
        return received * _float(visible_queries(site_of(trace, self.site)))

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """As every detector, with the unit that the option gives."""
        return _in_unit(super().labelled(values), self.fair)


@dataclass(frozen=True)
class ObservationWindow(Detector):
    """Attention that a key and its neighbours receive from the last queries.

    The keys of the window itself are kept whatever they receive, and have no score.
    """

    window: int = 32
    """Queries at the end of the text that look."""
    kernel: int = 5
    """Neighbouring keys that are pooled, an odd number; 1 for none."""
    pooling: str = "mean"
    """`mean` or `max` of them; beyond either end lie zeros."""
    fair: bool = False
    """Divide by the number of those queries that can see the key: fewer than all of
    them only where there is a sliding window or a chunk."""

    name = "observation_window"
    unit = "queries"
    long_name = "attention of the last queries"
    description = (
        "Attention that the token and its neighbours receive from the last queries "
        "together; NaN for the tokens of that window."
    )
    source = (
        "SnapKV, arXiv:2404.14469, and its code: each query head its own; the model's "
        "windows and learned sinks are respected"
    )
    dims = TOKENS

    def __post_init__(self) -> None:
        """Refuse an even kernel, which has no middle, and unknown pooling."""
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(
                "ObservationWindow needs a kernel that has a middle; got "
                f"kernel={self.kernel}. Choose an odd number, such as 5."
            )
        if self.pooling not in ("mean", "max"):
            raise InputError(
                "ObservationWindow pools by mean or by max; got pooling="
                f"{self.pooling!r}. Choose one of the two."
            )

    @property
    def needs(self) -> Capture:
        """What the last queries give."""
        late = ReceivedLate(self.window)
        return Capture((late,), edges=None, residual=False)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Column sums of the last queries, pooled over the keys before them.

        Raises:
            NotCapturedError: Queries look ahead, and none is the last.
        """
        node = site_of(trace, self.site)
        require_causal(node, self.name, "every query sees the whole text")
        late = statistic(trace, "received_late", self.site, last=self.window)
        before = late["key"] < length(node) - self.window
        if not self.fair:
            late = late * _float(visible_queries(node, self.window))
        # A key that none of these queries can see receives nothing from them.
        seen = late.fillna(0).where(before, 0)
        pooled = xr.apply_ufunc(
            _pool,
            seen,
            kwargs={"kernel": self.kernel, "pooling": self.pooling},
            input_core_dims=[["key"]],
            output_core_dims=[["key"]],
        )
        has_head = late.notnull().any("key")
        return pooled.where(before & has_head).transpose(*late.dims)

    def keep(self, scores: xr.DataArray, capacity: int = 2048) -> xr.DataArray:
        """The keys that stay: the window, and those of the highest scores before it.

        Args:
            scores: What this detector gives.
            capacity: Keys that stay, the window's included; a shorter text stays whole.

        Returns:
            As `interp.probes.retention.kept_keys`.

        Raises:
            InputError: There is no room for the window.
        """
        return kept_keys(scores, capacity, recent=self.window)

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """As every detector, with the unit that the option gives."""
        return _in_unit(super().labelled(values), self.fair)


@dataclass(frozen=True)
class SpAttenTokens(Detector):
    """Attention that a token receives from all heads and queries, up to a layer.

    Pruning is left to whoever prunes: a token that is dropped after a layer would
    change what later layers see, and stay dropped there.
    """

    fair: bool = False
    """Divide by the number of layers, heads and queries that could see the key."""

    name = "spatten_tokens"
    unit = "queries"
    long_name = "cumulative token importance"
    description = (
        "Attention that the token receives from every query of every head in this and "
        "all earlier layers."
    )
    source = (
        "SpAtten, arXiv:2012.09852: columns after the softmax, summed over heads and "
        "layers; without the pruning that it decides"
    )
    dims = ("layer", "key")

    @property
    def needs(self) -> Capture:
        """Received mass."""
        return Capture((Received(),), edges=None, residual=False)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Column sums, summed over heads and cumulated over layers."""
        received = statistic(trace, "received", self.site)
        queries = visible_queries(site_of(trace, self.site))
        total = (received * queries).sum("head").cumsum("layer")
        is_real = received.notnull().any(("layer", "head"))
        if self.fair:
            total = total / (received.notnull() * queries).sum("head").cumsum("layer")
        coords = received.isel(head=0, drop=True).coords
        return total.where(is_real).assign_coords(coords).transpose(..., "layer", "key")

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """As every detector, with the unit that the option gives."""
        return _in_unit(super().labelled(values), self.fair)


def token_importance(
    trace: xr.DataTree, *, fair: bool = False, site: str | None = None
) -> xr.Dataset:
    """Every score of tokens that a trace alone can give.

    Args:
        trace: With `received`, and `received_late` of the window to be used.
        fair: Divide by the number of queries that could see the key.
        site: Attention site; None takes `self`, else `encoder`.

    Returns:
        `accumulated_attention` and `observation_window` (layer, head, key), and
        `spatten_tokens` (layer, key).

    Raises:
        NotCapturedError: The trace lacks one of the statistics.
    """
    window = statistic(trace, "received_late", site).attrs["last"]
    detectors = (
        AccumulatedAttention(fair, site=site),
        ObservationWindow(window, fair=fair, site=site),
        SpAttenTokens(fair, site=site),
    )
    return xr.Dataset({detector.name: detector(trace) for detector in detectors})


def _pool(values: np.ndarray, kernel: int, pooling: str) -> np.ndarray:
    """Mean or maximum over neighbours along the last axis."""
    if pooling == "max":
        return maximum_filter1d(values, kernel, mode="constant")
    weights = np.full(kernel, 1 / kernel)
    return convolve1d(values, weights, mode="constant")


def _float(counts: xr.DataArray) -> xr.DataArray:
    """Counts that leave what they multiply in its own type."""
    return counts.astype("float32")


def _in_unit(values: xr.DataArray, fair: bool) -> xr.DataArray:
    return values.assign_attrs(units="fraction") if fair else values
