"""Massive activations: a few cells of the residual stream that dwarf all others.

Layers are those of the residual stream: 0 is the embedding, `l` the state after block
`l - 1`. The dimension is called `layer_residual`, since attention has one layer fewer.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from interp.capture import Capture
from interp.errors import NotCapturedError
from interp.probes.detector import Detector

FLOOR = 100.0
"""Magnitude that a massive activation exceeds."""
RATIO = 1000.0
"""Times the layer's median magnitude that a massive activation reaches."""
LOOSE_RATIO = 100.0
"""A ratio that also finds the first, smaller step of many models."""

RUN_COLUMNS = (
    "channel",
    "token",
    "token_text",
    "first_layer",
    "last_layer",
    "peak_layer",
    "peak",
    "sign",
    "writer_block",
    "writer_half",
    "share",
)


@dataclass(frozen=True)
class MassiveActivations(Detector):
    """Whether a token's largest activation is massive after a layer."""

    ratio: float = RATIO
    floor: float = FLOOR

    name = "massive_activations"
    unit = "true or false"
    long_name = "massive activation"
    description = (
        "Whether the token's largest activation exceeds the floor and reaches the "
        "ratio times the layer's median magnitude."
    )
    source = "arXiv:2402.17762; the median is over all tokens and channels of a layer"
    dims = ("layer_residual", "token")

    @property
    def needs(self) -> Capture:
        """The residual stream."""
        return Capture((), edges=None, residual=True)

    def site_name(self, trace: xr.DataTree) -> str:
        """Name of the node that is read."""
        return self.site or "residual"

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """The criterion for every layer and token."""
        stream = residual(trace, self.site)
        return self.holds(stream["max"], stream["median_all"])

    def holds(self, value: xr.DataArray, median: xr.DataArray) -> xr.DataArray:
        """The criterion for values of any shape, given the median of their layer."""
        magnitude = abs(value)
        return (magnitude > self.floor) & (magnitude >= self.ratio * median)


def residual(trace: xr.DataTree | xr.Dataset, site: str | None = None) -> xr.Dataset:
    """The residual stream's arrays, over `layer_residual`.

    Args:
        trace: As `interp.trace` returns it; or these arrays, which pass as they are,
            so that a text of an atlas can be read as well.
        site: `residual` or `encoder_residual`; None takes the first.

    Raises:
        NotCapturedError: The trace does not hold it.
    """
    if isinstance(trace, xr.Dataset):
        return trace
    name = site or "residual"
    if name not in trace.children:
        raise NotCapturedError(
            f"Asked for the node {name}; the trace holds "
            f"{', '.join(trace.children) or 'no node'}. Trace again with "
            "Capture(residual=True)."
        )
    return trace[name].to_dataset().rename(layer="layer_residual")


def stream_of(trace: xr.DataTree, site: str) -> str:
    """Name of the residual stream that an attention site reads and writes."""
    # An encoder's tokens are not those of the decoder's stream.
    own = "encoder_residual" if site == "encoder" else "residual"
    return own if own in trace.children else "residual"


def massive_cells(
    trace: xr.DataTree | xr.Dataset, criterion: MassiveActivations | None = None
) -> pd.DataFrame:
    """Every massive cell that the trace knows.

    A trace keeps the largest channel of every token and the few largest cells of every
    layer: a token's second massive channel is seen only if among the latter.

    Args:
        trace: One text, as `residual` takes it.
        criterion: When a cell is massive; None takes the paper's.

    Returns:
        Columns layer, token, channel, magnitude, sign (0 where the trace keeps no
        sign), in order of layer, token and channel.

    Raises:
        NotCapturedError: The trace lacks the residual stream.
    """
    criterion = criterion or MassiveActivations()
    stream = residual(trace, criterion.site)
    of_tokens = _cells(
        criterion.holds(stream["max"], stream["median_all"]),
        token=stream["token"],
        channel=stream["max_channel"],
        value=stream["max"],
        signed=False,
    )
    of_layers = _cells(
        criterion.holds(stream["top_value"], stream["median_all"]),
        token=stream["top_token"],
        channel=stream["top_channel"],
        value=stream["top_value"],
        signed=True,
    )
    # The signed entry comes first, so it is the one kept of a cell known twice.
    cells = pd.concat([of_layers, of_tokens], ignore_index=True)
    cells = cells.drop_duplicates(["layer", "token", "channel"])
    return cells.sort_values(["layer", "token", "channel"], ignore_index=True)


def runs(
    trace: xr.DataTree | xr.Dataset, criterion: MassiveActivations | None = None
) -> pd.DataFrame:
    """Massive activations as runs of layers: where each begins, ends, and who wrote it.

    The writer is the half of a block (attention or MLP) that, of all layers from the
    run's first to its peak, added most to the cell in the direction of its peak.

    Args:
        trace: One text, as `residual` takes it.
        criterion: When a cell is massive; None takes the paper's.

    Returns:
        One row a run, the largest peak first: channel, token, token_text, first_layer,
        last_layer and peak_layer (0 is the embedding), peak (magnitude), sign (1, -1,
        0 where not kept), writer_block (NA where the trace does not tell), writer_half
        ("attention", "mlp" or ""), share (what the writer added, over the peak).

    Raises:
        NotCapturedError: The trace lacks the residual stream.
    """
    criterion = criterion or MassiveActivations()
    stream = residual(trace, criterion.site)
    cells = massive_cells(trace, criterion)
    # Within one cell, layers of a run minus their rank are constant.
    cells["run"] = cells["layer"] - cells.groupby(["token", "channel"]).cumcount()
    rows = []
    for _, run in cells.groupby(["token", "channel", "run"]):
        token = int(run["token"].iloc[0])
        layers, magnitudes = run["layer"].to_numpy(), run["magnitude"].to_numpy()
        top = magnitudes.argmax()
        cell = {
            "channel": int(run["channel"].iloc[0]),
            "token": token,
            "token_text": str(stream["token_text"].sel(token=token).item()),
            "first_layer": layers[0],
            "last_layer": layers[-1],
            "peak_layer": layers[top],
            "peak": magnitudes[top],
            "sign": run["sign"].to_numpy()[top],
        }
        rows.append(cell | _writer(stream, cell))
    table = pd.DataFrame(rows, columns=RUN_COLUMNS)
    return table.sort_values("peak", ascending=False, ignore_index=True)


def _cells(
    massive: xr.DataArray,
    token: xr.DataArray,
    channel: xr.DataArray,
    value: xr.DataArray,
    signed: bool,
) -> pd.DataFrame:
    """The cells where `massive` is true, as rows."""
    arrays = xr.broadcast(massive, massive["layer_residual"], token, channel, value)
    holds, layers, tokens, channels, values = (array.values for array in arrays)
    found = values[holds]
    return pd.DataFrame(
        {
            "layer": layers[holds],
            "token": tokens[holds],
            "channel": channels[holds],
            "magnitude": np.abs(found),
            "sign": np.sign(found).astype(int) if signed else 0,
        }
    )


def _writer(stream: xr.Dataset, cell: dict) -> dict:
    """Who added most to the cell in the layers where it rises to its peak."""
    rise = slice(cell["first_layer"], cell["peak_layer"])
    unknown = {"writer_block": pd.NA, "writer_half": "", "share": np.nan}
    if "attention_write" not in stream or "mlp_write" not in stream:
        return unknown
    state = stream.sel(token=cell["token"], layer_residual=rise)
    # The trace records what was written to the token's largest channel only.
    state = state.where(state["max_channel"] == cell["channel"])
    halves = xr.concat(
        [state["attention_write"], state["mlp_write"]],
        pd.Index(["attention", "mlp"], name="half"),
    )
    added = halves * cell["sign"] if cell["sign"] else abs(halves)
    if not added.notnull().any():
        return unknown
    most = added.isel(added.argmax(...))
    return {
        "writer_block": int(most["layer_residual"]) - 1,
        "writer_half": str(most["half"].item()),
        "share": float(most) / cell["peak"],
    }
