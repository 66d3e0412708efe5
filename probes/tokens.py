"""What an atlas keeps of one text: sinks and massive activations, token by token."""

import json
from collections.abc import Iterable
from dataclasses import replace

import xarray as xr

from interp.errors import NotCapturedError
from interp.probes.activations import (
    LOOSE_RATIO,
    MassiveActivations,
    residual,
    stream_of,
)
from interp.probes.detector import Detector, site_of, statistic
from interp.probes.sinks import SinkTokens

STREAM = (
    "max",
    "max_channel",
    "attention_write",
    "mlp_write",
    "median_all",
    "top_value",
    "top_token",
    "top_channel",
)
"""Arrays of the residual stream that are kept."""


def over_tokens(
    trace: xr.DataTree,
    sinks: SinkTokens,
    massive: MassiveActivations,
    others: Iterable[Detector] = (),
) -> xr.Dataset:
    """Sinks and massive activations of one text, and what else is over its tokens.

    Args:
        trace: With what both detectors need.
        sinks: When a token is a sink.
        massive: When an activation is massive; `massive_loose` has the looser ratio.
        others: Further detectors over keys, queries or tokens.

    Returns:
        `sink_share` and `received`, its mean over heads, over (layer, token); arrays
        of the residual stream, `massive` and `massive_loose` over (layer_residual,
        token). Only the former where the trace has no residual stream. Each of
        `others` under its name, the mean over heads where it tells them apart; the
        attribute `skipped` (JSON) says which the trace cannot feed and why.

    Raises:
        NotCapturedError: The trace lacks `received`.
    """
    node = site_of(trace, sinks.site)
    received = statistic(trace, "received", sinks.site)
    stream_node = stream_of(trace, str(node.name))
    arrays = {
        "sink_share": sinks(trace).rename(key="token"),
        "received": of_tokens(received),
    }
    skipped = []
    for detector in others:
        try:
            arrays[detector.name] = of_tokens(detector(trace))
        except NotCapturedError as error:
            skipped.append({"what": detector.name, "why": str(error)})
    stream = {}
    if stream_node in trace.children:
        criterion = replace(massive, site=stream_node)
        loose = replace(criterion, ratio=min(LOOSE_RATIO, criterion.ratio))
        kept = residual(trace, stream_node)
        stream = {name: kept[name] for name in STREAM if name in kept}
        stream["massive"] = criterion(trace)
        stream["massive_loose"] = loose(trace)
    tokens = received.coords.get("key_token")
    found = xr.Dataset(
        {
            name: array.drop_vars(set(array.coords) - set(array.dims))
            for name, array in (arrays | stream).items()
        }
    )
    if tokens is not None:
        found = found.assign_coords(token_text=("token", tokens.values))
    return found.assign_attrs(
        name=trace.attrs.get("text_name", ""),
        n_tokens=found.sizes["token"],
        input_hash=trace.attrs.get("input_hash", ""),
        site=str(node.name),
        skipped=json.dumps(skipped),
    )


def of_tokens(values: xr.DataArray) -> xr.DataArray:
    """Over tokens instead of keys or queries, and the mean over heads."""
    values = values.rename(
        {dim: "token" for dim in ("key", "query") if dim in values.dims}
    )
    if "head" not in values.dims:
        return values
    mean = values.mean("head", dtype="float64", keep_attrs=True)
    name = values.attrs.get("long_name", values.name)
    return mean.assign_attrs(long_name=f"{name}, mean over heads")
