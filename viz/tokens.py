"""Tokens colored by a value: the text itself, and all layers of a long text at once."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.errors import InputError
from interp.viz import theme
from interp.viz.arrays import finite, index, require, title, unit, whole_ticks
from interp.viz.numbers import number

STEPS = 12
"""Color steps of a strip."""

_NAMES = {
    0x200B: "ZWSP",
    0x200C: "ZWNJ",
    0x200D: "ZWJ",
    0x200E: "LRM",
    0x200F: "RLM",
    0x061C: "ALM",
    0x2028: "LSEP",
    0x2029: "PSEP",
    0x202A: "LRE",
    0x202B: "RLE",
    0x202C: "PDF",
    0x202D: "LRO",
    0x202E: "RLO",
    0x2066: "LRI",
    0x2067: "RLI",
    0x2068: "FSI",
    0x2069: "PDI",
    0xFEFF: "BOM",
    0x00AD: "SHY",
    0x00A0: "NBSP",
    0x0D: "CR",
}
_MARK = "\u2039{}\u203a"
_MARKS = {
    code: _MARK.format(f"{code:02X}") for code in (*range(0x20), *range(0x7F, 0xA0))
}
_MARKS |= {code: _MARK.format(name) for code, name in _NAMES.items()}
_MARKS |= {0x0A: "↵", 0x09: "⇥"}


def visible(token: str, limit: int = 24) -> str:
    """The token as one short line: no character that hides, breaks or turns text.

    Line breaks become "↵", tabs "⇥", control characters their codes, marks of
    writing direction their names. What is longer than `limit` ends with "…".
    """
    text = str(token)
    shown = text[: limit + 1].translate(_MARKS)
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown.encode("utf-8", "replace").decode("utf-8")


def literal(text: str) -> str:
    """The text as plotly shows it letter by letter, without its own markup."""
    return escape(str(text), quote=False)


def token_strip(
    values: xr.DataArray,
    tokens: Sequence[str],
    *,
    limit: int = 400,
    scale: str = "linear",
    span: tuple[float, float] | None = None,
    style: bool = True,
    marks: Mapping[str, np.ndarray] | None = None,
) -> str:
    """The text in reading order, each token on the color of its value, as HTML.

    Args:
        values: One value a token, over (token).
        tokens: The tokens' strings, as many as values.
        limit: Tokens shown, from the start of the text.
        scale: "linear" from zero, or "log" from the tenth percentile.
        span: Values of the first and last color, instead of those.
        style: Put the style sheet in front; a page needs it once.
        marks: Sets of tokens by name, whose names stand in `data-marks`.

    Returns:
        An escaped fragment of HTML; in a notebook, `IPython.display.HTML(...)`.

    Raises:
        InputError: As many strings as values are needed; or an unknown scale.
        ShapeError: Other axes than (token).
    """
    values = require(values, ("token",), "token_strip")
    if len(tokens) != values.size:
        raise InputError(
            f"token_strip needs a string for each of {values.size} values; got "
            f"{len(tokens)}. Pass the token coordinate of the same text."
        )
    span = span or color_range(values, scale)
    classes = color_classes(values.values, span, scale)[:limit]
    unit_ = unit(values)
    spans = []
    for place, kind in enumerate(classes):
        token, value = str(tokens[place]), float(values.values[place])
        shown = f"{number(value)} {unit_}" if np.isfinite(value) else "no value"
        own = [name for name, chosen in (marks or {}).items() if chosen[place]]
        marked = f' data-marks="{escape(" ".join(own))}"' if own else ""
        said = " · ".join([str(place), visible(token, 60), *own, shown])
        spans.append(
            f'<span class="q{kind}"{marked} title="{escape(said)}">{_ink(token)}</span>'
        )
        if "\n" in token:
            spans.append("<br>")
    label = escape(f"{title(values)}, the first {len(classes)} tokens")
    head = f"<style>{strip_style()}</style>" if style else ""
    body = "".join(spans)
    return f'{head}<div class="tokens" role="group" aria-label="{label}">{body}</div>'


def strip_style() -> str:
    """Style sheet of token strips, for light and dark."""
    rules = [
        ".tokens{font:13px/2 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;"
        "overflow-wrap:anywhere;unicode-bidi:isolate}",
        ".tokens span{padding:2px 1px;border-radius:2px;white-space:pre-wrap;"
        "unicode-bidi:isolate;-webkit-print-color-adjust:exact;"
        "print-color-adjust:exact}",
        ".tokens .q-{outline:1px dotted currentColor;outline-offset:-1px}",
    ]
    rules += _step_rules(theme.LIGHT)
    dark = "".join(_step_rules(theme.DARK))
    rules.append(f"@media screen and (prefers-color-scheme:dark){{{dark}}}")
    return "".join(rules)


def color_range(values: xr.DataArray, scale: str = "linear") -> tuple[float, float]:
    """Smallest and largest value of the color steps."""
    if scale not in ("linear", "log"):
        raise InputError(
            f'A strip\'s scale is "linear" or "log"; got {scale!r}. Choose one.'
        )
    known = finite(values)
    if scale == "linear":
        return 0.0, float(known.max(initial=0.0)) or 1.0
    known = known[known > 0]
    if not known.size:
        return 0.1, 1.0
    low, high = float(np.quantile(known, 0.1)), float(known.max())
    return (low, high) if low < high else (high / 10, high)


def color_classes(
    values: np.ndarray, span: tuple[float, float], scale: str = "linear"
) -> list[str]:
    """Color step of each value as one letter, "0" to "9", "a", "b"; "-" without."""
    low, high = span
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (
            np.log(values / low) / np.log(high / low)
            if scale == "log"
            else (values - low) / (high - low)
        )
    steps = np.floor(np.clip(np.nan_to_num(place, nan=0.0), 0, 1) * STEPS)
    letters = np.array(list("0123456789ab"))[np.minimum(steps, STEPS - 1).astype(int)]
    return np.where(np.isnan(values), "-", letters).tolist()


def token_map(
    values: xr.DataArray,
    tokens: Sequence[str],
    *,
    opening: int = 12,
    columns: int = 600,
    scale: str = "linear",
) -> go.Figure:
    """Layers by tokens: the opening token by token, then the whole text.

    A column of the whole text holds the maximum over neighboring tokens, so that a
    single striking token never disappears.

    Args:
        values: One value a layer and token, over (layer, token).
        tokens: The tokens' strings.
        opening: Tokens drawn wide, with their text, on the left.
        columns: Most columns for the whole text.
        scale: "linear" or "log" colors.

    Raises:
        InputError: As many strings as tokens are needed.
        ShapeError: Other axes.
    """
    values = require(values, ("layer", "token"), "token_map")
    count = values.sizes["token"]
    if len(tokens) != count:
        raise InputError(
            f"token_map needs a string for each of {count} tokens; got {len(tokens)}. "
            "Pass the token coordinate of the same text."
        )
    data, layers = values.values.astype(np.float64), index(values, "layer")
    low, high = color_range(values, scale)
    starts = np.linspace(0, count, min(columns, count) + 1).round().astype(int)
    pooled = pool(data, starts)
    first = min(opening, count)
    places = [
        f"token {i}: {literal(visible(token))}"
        for i, token in enumerate(tokens[:first])
    ]
    figure = make_subplots(
        cols=2, shared_yaxes=True, column_widths=[0.26, 0.74], horizontal_spacing=0.02
    )
    left = _heat(data[:, :first], values, low, scale, "%{text}")
    left.update(x=np.arange(first), text=[places] * len(layers))
    right = _heat(pooled, values, low, scale, "%{x}")
    right.update(x=[_span_name(*span, tokens) for span in pairwise(starts.tolist())])
    figure.add_trace(left, row=1, col=1)
    figure.add_trace(right, row=1, col=2)
    figure.update_layout(
        template=theme.template(),
        title=title(values),
        height=round(float(np.clip(6 * len(layers), 120, 360))) + 124,
        coloraxis=_coloraxis(values, (low, high), scale),
        margin={"l": 48, "r": 8, "t": 48, "b": 76},
    )
    figure.update_yaxes(
        range=[layers[-1] + 0.5, layers[0] - 0.5],
        showgrid=False,
        **whole_ticks(len(layers), 6),
    )
    figure.update_yaxes(title="layer", col=1)
    figure.update_yaxes(ticks="", col=2)
    figure.update_xaxes(showgrid=False, ticks="")
    figure.update_xaxes(
        title=f"first {first} tokens",
        tickvals=list(range(first)),
        ticktext=[literal(visible(tokens[i], 9)) for i in range(first)],
        tickangle=-60,
        col=1,
    )
    ticks = _round_positions(count)
    figure.update_xaxes(
        title="token, whole text",
        type="category",
        tickvals=np.searchsorted(starts, ticks, side="right") - 1,
        ticktext=[number(tick) for tick in ticks],
        tickangle=0,
        col=2,
    )
    return figure


def pool(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Maximum over the columns between neighboring starts; NaN where all are."""
    filled = np.where(np.isnan(values), -np.inf, values)
    pooled = np.maximum.reduceat(filled, starts[:-1], axis=1)
    return np.where(np.isinf(pooled), np.nan, pooled)


def _coloraxis(values: xr.DataArray, span: tuple[float, float], scale: str) -> dict:
    bar: dict = {"title": {"text": literal(unit(values))}}
    axis = {"autocolorscale": True, "colorbar": bar}
    if scale == "linear":
        return axis | {"cmin": span[0], "cmax": span[1]}
    low, high = np.log10(span)
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    bar |= {"tickvals": (powers - low).tolist()}
    bar |= {"ticktext": [f"{10.0**power:g}" for power in powers]}
    return axis | {"cmin": 0.0, "cmax": high - low}


def _heat(
    block: np.ndarray, values: xr.DataArray, low: float, scale: str, place: str
) -> go.Heatmap:
    """Cells of the map; logarithms count from `low`, so that no color is signed."""
    is_log = scale == "log"
    shown = "%{customdata:,.3~r}" if is_log else "%{z:,.3~r}"
    measure = literal(unit(values))
    return go.Heatmap(
        y=index(values, "layer"),
        z=(np.log10(np.maximum(block, low) / low) if is_log else block).astype("f4"),
        customdata=block.astype("f4") if is_log else None,
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate=f"{place}<br>layer %{{y}}: {shown} {measure}<extra></extra>",
    )


def _span_name(start: int, stop: int, tokens: Sequence[str]) -> str:
    words = "".join(visible(tokens[i], 12) for i in range(start, min(stop, start + 6)))
    place = f"token {start}" if stop - start == 1 else f"tokens {start} to {stop - 1}"
    return f"{place}: {literal(words[:60])}"


def _round_positions(count: int) -> list[int]:
    """About eight round numbers below `count`."""
    size = 10 ** int(np.log10(max(count / 8, 1)))
    step = size * min((1, 2, 5, 10), key=lambda factor: abs(factor * size - count / 8))
    return list(range(0, count, step))


def _step_rules(palette: theme.Palette) -> list[str]:
    letters = "0123456789ab"
    return [
        f".tokens .q{letter}{{background:{back};color:{ink}}}"
        for letter, (back, ink) in zip(letters, palette.classes(STEPS), strict=True)
    ]


def _ink(token: str) -> str:
    return escape(visible(token, 40))
