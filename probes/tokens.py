"""What an atlas keeps of one text: sinks and massive activations, token by token."""

from dataclasses import replace

import xarray as xr

from interp.probes.activations import LOOSE_RATIO, MassiveActivations, residual
from interp.probes.detector import site_of, statistic
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
    trace: xr.DataTree, sinks: SinkTokens, massive: MassiveActivations
) -> xr.Dataset:
    """Sinks and massive activations of one text.

    Args:
        trace: With what both detectors need.
        sinks: When a token is a sink.
        massive: When an activation is massive; `massive_loose` has the looser ratio.

    Returns:
        `sink_share` and `received`, its mean over heads, over (layer, token); arrays
        of the residual stream, `massive` and `massive_loose` over (layer_residual,
        token). Only the former where the trace has no residual stream.

    Raises:
        NotCapturedError: The trace lacks `received`.
    """
    node = site_of(trace, sinks.site)
    received = statistic(trace, "received", sinks.site)
    # An encoder's tokens are not those of the decoder's stream.
    own_stream = "encoder_residual" if node.name == "encoder" else "residual"
    stream_node = own_stream if own_stream in trace.children else "residual"
    mean = received.mean("head", dtype="float64").assign_attrs(
        received.attrs,
        long_name=f"{received.attrs.get('long_name', 'received')}, mean over heads",
    )
    arrays = {
        "sink_share": sinks(trace).rename(key="token"),
        "received": mean.rename(key="token"),
    }
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
    )
