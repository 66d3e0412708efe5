"""The first things to know of an atlas, as sentences computed from its numbers."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.probes.detector import REPEATED_RANDOM
from interp.viz.arrays import correlation, index, unit
from interp.viz.atlas import detector, epsilon, texts
from interp.viz.numbers import NOTHING, number, percent, plural
from interp.viz.tables import massive_cells, sink_tokens
from interp.viz.tokens import visible


@dataclass(frozen=True)
class Finding:
    """A number that catches the eye, what it means, and the section with the rest."""

    headline: str
    sentence: str
    section: str


def findings(atlas: xr.DataTree, count: int = 4) -> list[Finding]:
    """The first of those that the atlas can answer."""
    candidates = (
        _first_token,
        _massive,
        _induction,
        _span,
        _other_sinks,
        _previous_token,
    )
    made = (candidate(atlas) for candidate in candidates)
    return [finding for finding in made if finding is not None][:count]


def _first_token(atlas: xr.DataTree) -> Finding | None:
    array = detector(atlas, "sinks")
    if array is None or not np.isfinite(array.values).any():
        return None
    limit = epsilon(atlas)
    known = np.isfinite(array.values)
    above = known & (np.nan_to_num(array.values) > limit)
    n_above, n_heads = int(above.sum()), int(known.sum())
    if not n_above:
        name, value = _top(array)
        return Finding(
            f"0 of {n_heads:,} heads",
            f"No head gives more than {percent(limit)} of its attention to the first "
            f"token; the largest share is {percent(value)}, in {name}.",
            "sinks",
        )
    layers = index(array, "layer")
    crowded = layers[above.sum(axis=1) * 2 >= np.maximum(known.sum(axis=1), 1)]
    where = (
        f"The first layer in which at least half of the heads do is {crowded[0]}."
        if crowded.size
        else f"The first such layer is {layers[above.any(axis=1)][0]}."
    )
    verb = "gives" if n_above == 1 else "give"
    return Finding(
        f"{n_above:,} of {n_heads:,} heads",
        f"{percent(n_above / n_heads)} of the heads {verb} more than {percent(limit)} "
        f"of their attention to the first token. {where}",
        "sinks",
    )


def _massive(atlas: xr.DataTree) -> Finding | None:
    cells = [
        cell for _, text in texts(atlas) for cell in massive_cells(text, loosely=False)
    ]
    if not cells:
        return None
    cell = max(cells, key=lambda cell: abs(cell.peak))
    writer = "" if cell.writer == NOTHING else f" The {cell.writer} writes it."
    return Finding(
        f"{number(cell.ratio)}\N{MULTIPLICATION SIGN} the median",
        f"Channel {cell.channel} of token {cell.position} "
        f"(\N{LEFT DOUBLE QUOTATION MARK}{cell.token}"
        f"\N{RIGHT DOUBLE QUOTATION MARK}) reaches "
        f"{number(abs(cell.peak))} in the residual stream and is massive in hidden "
        f"states {cell.strict}.{writer}",
        "activations",
    )


def _induction(atlas: xr.DataTree) -> Finding | None:
    array = detector(atlas, "induction")
    if array is None or not np.isfinite(array.values).any():
        return None
    name, value = _top(array)
    drawn = array.attrs.get("task") == REPEATED_RANDOM
    where = "On repeated random tokens" if drawn else "In this text"
    n_above = int((np.nan_to_num(array.values) > 0.3).sum())
    verb = "gives" if n_above == 1 else "give"
    many = (
        f"{verb} more than {percent(0.3)}" if n_above else f"none over {percent(0.3)}"
    )
    return Finding(
        plural(n_above, "induction head") if n_above else "No induction head",
        f"{where}, {name} gives {percent(value)} of its attention to "
        f"the token that followed the current one before"
        + (f"; {plural(n_above, 'head')} {many}." if n_above else f", {many}."),
        "strongest",
    )


def _span(atlas: xr.DataTree) -> Finding | None:
    array = detector(atlas, "distance")
    if array is None or array.attrs.get("site") == "encoder":
        return None  # It is signed there: back and ahead cancel.
    if not np.isfinite(array.values).any():
        return None
    middle = float(np.nanmedian(array.values))
    name, value = _top(array)
    units = unit(array) or "tokens"
    sinks = detector(atlas, "sinks")
    r = float("nan") if sinks is None else correlation(array, sinks)
    also = f" With the mass on the first token it correlates with r = {number(r, 2)}."
    return Finding(
        f"{number(middle)} {units} back",
        f"Half of the heads look less far back than this on average, half further. "
        f"{name} looks furthest: {number(value)} {units}."
        + (also if np.isfinite(r) else ""),
        "distance",
    )


def _other_sinks(atlas: xr.DataTree) -> Finding | None:
    rows = [
        row
        for _, text in texts(atlas)
        for row in sink_tokens(text)
        if row.position > 0 and row.share > 0 and row.followers >= row.position / 3
    ]
    if not rows:
        return None
    row = max(rows, key=lambda row: row.share)
    return Finding(
        plural(len(rows), "other sink"),
        f"Besides the first token, token {row.position} "
        f"(\N{LEFT DOUBLE QUOTATION MARK}{visible(row.token).strip()}"
        f"\N{RIGHT DOUBLE QUOTATION MARK}) is a sink for {percent(row.share)} of the "
        f"heads of layer {row.layer}.",
        "sinks",
    )


def _previous_token(atlas: xr.DataTree) -> Finding | None:
    array = detector(atlas, "previous_token")
    if array is None or not np.isfinite(array.values).any():
        return None
    name, value = _top(array)
    return Finding(
        f"{name} looks one back",
        f"It gives {percent(value)} of its attention to the previous token, more than "
        "any other head.",
        "strongest",
    )


def _top(array: xr.DataArray) -> tuple[str, float]:
    flat = int(np.nanargmax(array.values))
    row, column = np.unravel_index(flat, array.shape)
    head = f"L{index(array, 'layer')[row]}.H{index(array, 'head')[column]}"
    return head, float(array.values[row, column])
