"""Tokens that are sinks: where in depth, how like the first one, with what vectors.

Layers are the blocks that attend; those of the residual stream are `layer_residual`,
as in `interp.probes.activations`. Block l reads layer l of the stream.
"""

from dataclasses import dataclass

import pandas as pd
import xarray as xr

from interp.capture import Capture
from interp.errors import InputError, NotCapturedError
from interp.kernels.definitions import Received
from interp.probes.activations import (
    FLOOR,
    LOOSE_RATIO,
    MassiveActivations,
    residual,
    stream_of,
)
from interp.probes.detector import Detector, site_of, statistic
from interp.probes.reading import Bootstrap
from interp.probes.sinks import (
    ACT_FIXED,
    MIN_QUERIES,
    SinkTokens,
    are_sinks,
    cells_where,
)

COSINE = 0.9
"""Cosine to the first token from which a state counts as like it."""


@dataclass(frozen=True)
class IntermediateSinks(Detector):
    """Whether a later token is a sink in the way the first one is.

    Its state points where the first token's does and has a massive channel in common
    with it, and heads of the block that reads the state attend to it.
    """

    cosine: float = COSINE
    epsilon: float = ACT_FIXED
    relative: bool = False
    min_queries: int = MIN_QUERIES
    ratio: float = LOOSE_RATIO
    floor: float = FLOOR

    name = "intermediate_sinks"
    unit = "true or false"
    long_name = "intermediate sink"
    description = (
        "Whether a token but the first has the first one's direction and a massive "
        "channel of it, and is a sink of a head that reads it."
    )
    source = (
        "arXiv:2510.22603, where the ratio is 1000 and no threshold is given for "
        "cosine and attention"
    )
    dims = ("layer_residual", "token")

    @property
    def needs(self) -> Capture:
        """Received mass and the residual stream."""
        return Capture((Received(),), edges=None, residual=True)

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """The criterion for every layer and token; false in the last layer."""
        told = self.evidence(trace)
        like_first = (told["cosine"] >= self.cosine) & (told["shared"] > 0)
        holds = (told["token"] > 0) & like_first & (told["heads"] > 0)
        return holds.transpose(..., *self.dims)

    def evidence(self, trace: xr.DataTree) -> xr.Dataset:
        """What the criterion is made of.

        Returns:
            Over (layer_residual, token): `cosine` to the first token; `shared`, massive
            channels that both have, of those that the trace knows (a token's largest
            one, and the largest cells of the layer); `heads` for which it is a sink in
            the block that reads the state, NaN in the last layer, which none reads.

        Raises:
            InputError: The site is cross-attention.
            NotCapturedError: The trace lacks something in `needs`.
        """
        site = str(site_of(trace, self.site).name)
        if site == "cross":
            raise InputError(
                "Intermediate sinks were asked for at the site cross, whose keys are "
                "not the tokens of the stream that reads them. Choose self or encoder."
            )
        sinks = are_sinks(trace, self.epsilon, self.relative, self.min_queries, site)
        stream = residual(trace, stream_of(trace, site))
        if "cosine" not in stream:
            raise NotCapturedError(
                "Asked for the cosine of the residual stream; the trace holds "
                f"{', '.join(map(str, stream.data_vars))}. Trace again with "
                "Capture(residual=True)."
            )
        heads = sinks.sum("head", dtype="float64").rename(
            layer="layer_residual", key="token"
        )
        heads = heads.drop_vars(set(heads.coords) - {"layer_residual", "token"})
        shared = _shared_channels(stream, MassiveActivations(self.ratio, self.floor))
        kept = {"cosine": stream["cosine"], "shared": shared}
        return xr.Dataset(
            {**kept, "heads": heads.reindex_like(stream["cosine"]).drop_attrs()}
        )

    def table(self, trace: xr.DataTree) -> pd.DataFrame:
        """Every intermediate sink.

        Returns:
            Columns layer_residual, token, token_text, cosine, shared, heads; with a
            first column sample for a batch.
        """
        told = self.evidence(trace)
        values = {name: told[name] for name in ("cosine", "shared", "heads")}
        if "token_text" in told.coords:
            values = {"token_text": told["token_text"], **values}
        return cells_where(self.measure(trace), values)


def sink_depth(
    trace: xr.DataTree,
    sinks: SinkTokens | None = None,
    bootstrap: Bootstrap | None = None,
) -> xr.Dataset:
    """Which share of each layer's heads has a sink, at the first token and later ones.

    Args:
        trace: One text, or a batch, over whose texts means and intervals go.
        sinks: When a token is a sink; None takes the fixed threshold of ACT.
        bootstrap: How intervals are made.

    Returns:
        Over `layer`: `first`, `later` (at least one token but the first), fractions of
        heads, each with `<name>_interval` (layer, bound), NaN for a single text.

    Raises:
        NotCapturedError: The trace lacks `received`.

    Source:
        arXiv:2406.15765, arXiv:2410.10781.
    """
    sinks = sinks or SinkTokens(epsilon=ACT_FIXED)
    masses = are_sinks(
        trace, sinks.epsilon, sinks.relative, sinks.min_queries, sinks.site
    )
    is_first = masses["key"] == 0
    has = {"first": masses.where(is_first), "later": masses.where(~is_first)}
    shares = {
        name: each.max("key").mean("head", dtype="float64")
        for name, each in has.items()
    }
    titles = {
        "first": "share of heads whose first token is a sink",
        "later": "share of heads with a sink at a later token",
    }
    attrs = {"units": "fraction", "source": "arXiv:2406.15765"}
    options = {"epsilon": sinks.epsilon, "relative": sinks.relative}
    return _over_texts(shares, titles, bootstrap or Bootstrap(), attrs | options)


def sink_norms(
    trace: xr.DataTree,
    is_sink: xr.DataArray | None = None,
    site: str | None = None,
    bootstrap: Bootstrap | None = None,
) -> xr.Dataset:
    """Length of the keys and values of sinks, over that of all other tokens.

    Sinks hold much attention and little content: a small value adds little to the
    stream however much attention it gets.

    Args:
        trace: With `Norms()`; one text, or a batch, over whose texts means and
            intervals go.
        is_sink: Over (layer, head, key), such as `SinkTokens().heads(trace)`; None is
            the first token alone.
        site: Attention site; None takes `self`, else `encoder`.
        bootstrap: How intervals are made.

    Returns:
        Over (layer, head): `key_norm_ratio` and `value_norm_ratio`, mean L2 norm of
        the sinks over that of the others, without unit; NaN where a head has none of
        either. Each has an `<name>_interval` (layer, head, bound), NaN for one text.

    Raises:
        NotCapturedError: The trace lacks the norms.

    Source:
        arXiv:2410.10781, where the first token's are small.
    """
    ratios, titles = {}, {}
    for name in ("key_norm", "value_norm"):
        norm = statistic(trace, name, site)
        chosen = norm["key"] == 0 if is_sink is None else is_sink
        own, others = norm.where(chosen), norm.where(~chosen)
        means = [each.mean("key", dtype="float64") for each in (own, others)]
        ratios[f"{name}_ratio"] = means[0] / means[1]
        titles[f"{name}_ratio"] = f"{norm.attrs.get('long_name', name)}, over others'"
    attrs = {"units": "dimensionless", "source": "arXiv:2410.10781"}
    return _over_texts(ratios, titles, bootstrap or Bootstrap(), attrs)


def _over_texts(
    measured: dict[str, xr.DataArray],
    titles: dict[str, str],
    bootstrap: Bootstrap,
    attrs: dict,
) -> xr.Dataset:
    """Means and intervals over the texts of a batch, or a single text's values."""
    found = {}
    for name, values in measured.items():
        values = values if "sample" in values.dims else values.expand_dims("sample")
        told = attrs | {"long_name": titles[name]}
        mean, bounds = values.mean("sample"), bootstrap.interval(values, "sample")
        found[name] = mean.drop_attrs(deep=False).assign_attrs(told)
        found[f"{name}_interval"] = bounds.assign_attrs(
            told | {"long_name": f"{titles[name]}, interval"}
        )
    n_texts = next(iter(measured.values())).sizes.get("sample", 1)
    how = bootstrap.says(f"{n_texts} texts") if n_texts > 1 else "none: one text"
    return xr.Dataset(found, attrs={"interval": how})


def _shared_channels(stream: xr.Dataset, criterion: MassiveActivations) -> xr.DataArray:
    """Number of massive channels that a token has in common with the first."""
    token, median = stream["token"], stream["median_all"]
    largest = stream["max_channel"].where(criterion.holds(stream["max"], median), -1)
    is_massive = criterion.holds(stream["top_value"], median)
    of_token = is_massive & (stream["top_token"] == token)
    of_token &= stream["top_channel"] != largest  # else it would count twice
    of_first = is_massive & (stream["top_token"] == 0)
    first = stream["top_channel"].where(of_first, -1).rename(rank="rank_of_first")

    def in_first(channel: xr.DataArray) -> xr.DataArray:
        known = (channel == largest.isel(token=0, drop=True)) | (channel == first).any(
            "rank_of_first"
        )
        return known & (channel >= 0)

    others = (of_token & in_first(stream["top_channel"])).sum("rank")
    return (others + in_first(largest)).transpose(*stream["max"].dims)
