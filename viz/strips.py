"""The text itself on the page, colored by one of the signals that its tokens have."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from interp.viz.arrays import finite, index, title, unit
from interp.viz.atlas import strings, token_signals
from interp.viz.numbers import number
from interp.viz.tokens import color_classes, color_range, token_strip

WIDE = 100.0
"""Factor from the tenth percentile to the largest from which colors are logarithmic."""

_RECEIVED = "Mean over heads of the attention received."


def colored_text(
    text: xr.Dataset, limit: int, marks: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any] | None:
    """The text colored by its first signal, and the colors of every other.

    Args:
        text: A text's node of an atlas.
        limit: Tokens shown, from the start of the text.
        marks: Sets of tokens by name, as `token_strip` takes them.

    Returns:
        What the template shows; None for a text without any signal. `colors` goes to
        the page's script: colors of each layer (none for a signal that tells no layers
        apart), and under `others` all that changes with another signal.
    """
    signals = token_signals(text)
    if not signals:
        return None
    tokens = strings(text)
    parts = {name: _signal(name, array, limit) for name, array in signals.items()}
    name = next(iter(signals))
    first = parts.pop(name)
    shown = _largest(signals[name])
    html = token_strip(
        shown,
        tokens,
        limit=limit,
        scale=first["scale"],
        span=color_span(signals[name], first["scale"]),
        style=False,
        marks=marks,
    )
    by_layer = [array for array in signals.values() if "layer" in array.dims]
    layers = index(by_layer[0], "layer").tolist() if by_layer else []
    return {
        **first,
        "html": Markup(html),
        "shown": min(limit, len(tokens)),
        "layers": layers,
        "choices": [(key, part["title"]) for key, part in parts.items()],
        "colors": {"layers": layers, "classes": first["classes"], "others": parts},
    }


def color_scale(values: xr.DataArray) -> str:
    """Whether colors are "log", as where positive values span far, or "linear"."""
    known = finite(values)
    if not known.size or known.min() < 0 or not known.max():
        return "linear"
    low = np.quantile(known[known > 0], 0.1)
    return "log" if low * WIDE < known.max() else "linear"


def color_span(values: xr.DataArray, scale: str) -> tuple[float, float]:
    """Values of the first and last color: linear ones leave no color unused."""
    if scale == "log":
        return color_range(values, scale)
    low, high = float(finite(values).min()), float(finite(values).max())
    return low, high if low < high else low + 1


def _signal(name: str, values: xr.DataArray, limit: int) -> dict[str, Any]:
    """Colors and values of the first tokens, and what the legend says of them."""
    scale = "log" if name == "received" else color_scale(values)
    low, high = color_span(values, scale)
    largest = _largest(values).values[:limit]
    rows = values.values[:, :limit] if "layer" in values.dims else ()
    measure, about = unit(values), str(values.attrs.get("description", ""))
    return {
        "name": name,
        "title": title(values),
        "unit": measure,
        "scale": scale,
        "low": number(low, 2),
        "high": number(high, 2),
        "about": _RECEIVED if name == "received" else about,
        "classes": ["".join(color_classes(row, (low, high), scale)) for row in rows],
        "largest": "".join(color_classes(largest, (low, high), scale)),
        "values": [
            f"{number(value)} {measure}" if np.isfinite(value) else "no value"
            for value in largest
        ],
    }


def _largest(values: xr.DataArray) -> xr.DataArray:
    if "layer" not in values.dims:
        return values
    shown = values.max("layer", keep_attrs=True)
    return shown.assign_attrs(long_name=f"{title(values)}, largest over layers")
