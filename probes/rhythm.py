"""The rhythm of reasoning: local look-back (WAAD) and later influence (FAI) of tokens.

Both are linear in the map, so that of the mean map over a set of heads is the mean of
the heads' own, which a trace holds; nothing of size query x key is made.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import xarray as xr

from interp.errors import InputError, NotCapturedError
from interp.kernels.definitions import ClippedDistance, Received, Statistic
from interp.probes.coupling import Coupling, couplings, largest
from interp.probes.detector import HEADS, site_of, statistic
from interp.probes.horizons import (
    HORIZONS,
    Horizon,
    held,
    influence,
    label,
    statistic_of,
)
from interp.probes.reach import GLOBAL, LOCAL, Reach, Span
from interp.probes.receivers import Receivers
from interp.probes.visibility import require_causal

SOURCE = "arXiv:2510.13554"

LONG_NAMES = {
    "waad": ("tokens", "windowed average attention distance, local heads"),
    "delta": ("tokens", "change of WAAD to the next token"),
    "fai": ("fraction", "future attention influence, global heads"),
    "receiver_fai": ("fraction", "future attention influence, receiver heads"),
    "entropy": ("nats", "entropy of the prediction of the token"),
    "nll": ("nats", "negative log-likelihood of the token"),
    "preplan": ("flag", "preplan token: WAAD changes most after it"),
    "anchor": ("flag", "anchor token: most FAI"),
    "waad_peak": ("flag", "peak of WAAD"),
    "fai_peak": ("flag", "peak of FAI"),
    "receiver_peak": ("flag", "peak of the receiver heads' FAI"),
    "is_receiver": ("flag", "receiver head: kurtosis among the highest"),
}
"""Units and titles of what is found."""


@dataclass(frozen=True)
class Rhythm:
    """What is read off a response, and how."""

    reach: Reach = field(default_factory=Reach)
    """Which heads are local, and which are global."""
    clip: int = 10
    """W: distances count up to so many tokens."""
    horizons: tuple[Horizon, ...] = HORIZONS
    """How far later tokens may be that look at a token."""
    share: float = 0.4
    """Share of tokens that preplan, and of those that are anchors."""
    receivers: Receivers = field(default_factory=Receivers)
    """How receiver heads are told."""
    receiver_share: float = 0.05
    """Share of heads, those of the highest kurtosis, that are receiver heads."""
    coupling: Coupling = field(default_factory=Coupling)
    """What a peak is, and what chance."""

    def __post_init__(self) -> None:
        """Refuse shares that are none, and no horizon."""
        if not (0 < self.share < 1 and 0 < self.receiver_share <= 1):
            raise InputError(
                "Shares of tokens and heads lie between 0 and 1; got share="
                f"{self.share} and receiver_share={self.receiver_share}. Usual are 0.4 "
                "and 0.05."
            )
        if not self.horizons or len(set(self.horizons)) < len(self.horizons):
            raise InputError(
                f"One or more horizons are needed that differ; got {self.horizons}. "
                f"Usual are {HORIZONS}."
            )
        for horizon in self.horizons:
            statistic_of(horizon)  # refuses an empty one

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What one forward has to record of the layers that are looked at."""
        far = self.receivers.needs.statistics
        span = Span(exclude_sink=True).needs.statistics
        return (*span, ClippedDistance(self.clip), Received(), *far)

    def read(self, trace: xr.DataTree, n_layers: int | None = None) -> xr.Dataset:
        """Everything about one response.

        Args:
            trace: From `trace_chain`; or from `interp.trace_generation`, which has
                fewer horizons, no entropy, and no receivers unless it was captured with
                what they need.
            n_layers: Layers of the model, if not all are in the trace.

        Returns:
            Over `token`, those of the response: `waad`, `delta` (|WAAD_t - WAAD_t+1|),
            `preplan`, `waad_peak`, `token_text`, and `entropy` and `nll` of the
            prediction of each token if known; with `horizon` also `fai`, `anchor`,
            `fai_peak`, `receiver_fai`, `receiver_peak`. Over heads `span`, `reach` and
            `overlap` as `Reach` gives them, `kurtosis`, `is_receiver`. Over (link,
            horizon) what `couplings` gives. The attribute `skipped` (JSON) says what
            the trace could not tell.

        Raises:
            NotCapturedError: The trace lacks a statistic, every horizon, or says not
                which tokens are the response.
        """
        own, missing = response_of(trace), dict[str, str]()
        node = site_of(own)
        require_causal(node, "a rhythm", "no token is read before the others")
        heads = self.reach(own, n_layers)
        try:
            heads["kurtosis"] = self.receivers(own)
            is_receiver = _highest(heads["kurtosis"], self.receiver_share)
        except NotCapturedError as error:
            missing["receiver heads"] = str(error)
            is_receiver = xr.zeros_like(heads["span"].isel(sink=0, drop=True), bool)
        heads["is_receiver"] = is_receiver
        curves = self._curves(own, heads, missing)
        if "predictions" in trace.children:
            expected = trace["predictions"].to_dataset()
            curves = curves.merge(expected.map(_on_tokens))
        curves = self._marked(curves)
        found = xr.merge([curves, heads, couplings(curves, self.coupling)])
        for name in LONG_NAMES.keys() & set(found):
            units, title = LONG_NAMES[name]
            found[name].attrs = {"units": units, "long_name": title, "source": SOURCE}
        skipped = [{"what": what, "why": why} for what, why in missing.items()]
        return found.assign_attrs(
            name=trace.attrs.get("text_name", ""),
            prompt_tokens=trace.attrs["prompt_tokens"],
            options=json.dumps(asdict(self)),
            skipped=json.dumps(skipped),
        )

    def _curves(
        self, trace: xr.DataTree, heads: xr.Dataset, missing: dict[str, str]
    ) -> xr.Dataset:
        """WAAD, and FAI of every horizon that the trace holds; others are missing."""
        node, labels = site_of(trace), heads["reach"].sel(sink=self.reach.sink)
        there = held(node)
        horizons = [each for each in self.horizons if each in there]
        for each in self.horizons:
            if each not in there:
                why = f"the trace holds {', '.join(map(label, there)) or 'none'}"
                missing[f"horizon {label(each)}"] = f"{why}; trace_chain records all"
        if not horizons:
            raise NotCapturedError(
                f"Influence over {', '.join(map(label, self.horizons))} was asked for; "
                f"the trace holds {', '.join(map(label, there)) or 'none'}. Choose of "
                "these horizons, or use trace_chain."
            )
        waad = _mean(statistic(trace, "waad", clip=self.clip), labels == LOCAL)
        fai, received = [], []
        for each in horizons:
            values = influence(there[each], node, each)
            fai.append(_mean(values, labels == GLOBAL))
            received.append(_mean(values, heads["is_receiver"]))
        names = np.array([label(each) for each in horizons], dtype=object)
        along = xr.DataArray(names, dims="horizon", name="horizon")
        return xr.Dataset(
            {
                "waad": waad,
                "delta": abs(waad - waad.shift(token=-1)),
                "fai": xr.concat(fai, along),
                "receiver_fai": xr.concat(received, along),
                "token_text": _on_tokens(node.dataset["query_token"]),
            }
        )

    def _marked(self, curves: xr.Dataset) -> xr.Dataset:
        """Token sets and peaks."""
        most, peaks = partial(largest, share=self.share), self.coupling.find
        return curves.assign(
            preplan=_each(most, curves["delta"]),
            anchor=_each(most, curves["fai"]),
            waad_peak=_each(peaks, curves["waad"]),
            fai_peak=_each(peaks, curves["fai"]),
            receiver_peak=_each(peaks, curves["receiver_fai"]),
        )


def response_of(trace: xr.DataTree) -> xr.DataTree:
    """The tokens of a trace that were generated, which keep their positions.

    Args:
        trace: Of one text, whose attribute `prompt_tokens` says how many tokens come
            before them.

    Raises:
        NotCapturedError: It says not, or holds several texts.
    """
    node = site_of(trace)
    n_prompt = trace.attrs.get("prompt_tokens")
    if n_prompt is None or "sample" in node.dims:
        raise NotCapturedError(
            "A rhythm is that of one response; the trace "
            + ("holds several texts." if n_prompt is not None else "says of none.")
            + " Trace one with trace_chain or interp.trace_generation, or pass "
            "attrs={'prompt_tokens': n} to interp.trace."
        )
    dataset = node.to_dataset()
    for dim in ("query", "key"):
        if f"{dim}_length" not in dataset.coords:
            dataset = dataset.assign_coords({f"{dim}_length": node.sizes[dim]})
    kept = dataset.sel(query=slice(n_prompt, None), key=slice(n_prompt, None))
    root = xr.Dataset(attrs=trace.attrs)
    return xr.DataTree.from_dict({"/": root, f"/{node.name}": kept})


def _highest(values: xr.DataArray, share: float) -> xr.DataArray:
    """Which heads are among the share with the highest values."""
    best = largest(values.values.ravel(), share)
    return values.copy(data=best.reshape(values.shape))


def _mean(values: xr.DataArray, chosen: xr.DataArray) -> xr.DataArray:
    """Mean over chosen heads, along `token`; NaN without any."""
    return _on_tokens(values.where(chosen).mean(HEADS, dtype="float64"))


def _on_tokens(values: xr.DataArray) -> xr.DataArray:
    """Along `token`, counted from the beginning of the response."""
    (dim,) = values.dims
    bare = values.drop_vars(values.coords).rename({dim: "token"})
    return bare.assign_coords(token=np.arange(values.size))


def _each(
    find: Callable[[np.ndarray], np.ndarray], curve: xr.DataArray
) -> xr.DataArray:
    """What is found along the tokens of each curve."""
    core = [["token"]]
    return xr.apply_ufunc(
        find, curve, input_core_dims=core, output_core_dims=core, vectorize=True
    )
