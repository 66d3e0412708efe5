"""All that is known of one head, as rows of a table."""

import numpy as np
import xarray as xr

from interp.viz import atlas as layout
from interp.viz.arrays import labels, title, unit
from interp.viz.numbers import NOTHING, interval, number

Row = dict[str, str]


def head_card(atlas: xr.DataTree, layer: int, head: int) -> list[Row]:
    """Every detector's value for one head, with its interval and its place.

    Args:
        atlas: As `interp.probes.atlas` makes it.
        layer: Of the head.
        head: Of the head.

    Returns:
        A row a detector: its name, what it measures, the value with its unit, the
        interval, and how many of the heads with a value have a larger one.
    """
    rows = []
    for name in layout.detectors(atlas):
        array = layout.detector(atlas, name)
        if array is None:
            continue
        value = float(array.sel(layer=layer, head=head))
        bounds = layout.bounds(atlas, name)
        names = labels(array)
        shown, place, spans = f"{number(value)} {unit(array)}".strip(), NOTHING, NOTHING
        if names:
            shown = names.get(int(value), NOTHING) if np.isfinite(value) else NOTHING
        elif np.isfinite(value):
            known = array.values[np.isfinite(array.values)]
            place = f"{int((known > value).sum()) + 1} of {known.size}"
        if bounds is not None and not names:
            low, high = bounds.sel(layer=layer, head=head).values
            spans = interval(float(low), float(high))
        rows.append(
            {
                "detector": name,
                "what": title(array),
                "value": shown,
                "interval": spans,
                "place": place,
            }
        )
    return rows
