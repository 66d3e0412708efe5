"""Colors and plotly templates of every figure, for light and dark paper.

Sequential colors change monotonically in lightness and signed ones run from blue to
orange, so that both survive color blindness and a grayscale printer; categories take
hues of the palette of Okabe and Ito. Nothing is registered at import.
"""

from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go
import plotly.io as pio

Mode = Literal["light", "dark"]

SANS = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
)

_DEPTHS = (
    "#def5e5",
    "#ade3c0",
    "#6cd3ad",
    "#43bbad",
    "#35a1ab",
    "#3487a6",
    "#366da0",
    "#3d5296",
    "#403974",
    "#35264c",
    "#231526",
)
"""The mako ramp, light to dark."""


@dataclass(frozen=True)
class Palette:
    """Every color that one mode uses, as hexadecimal strings."""

    paper: str
    card: str
    ink: str
    muted: str
    rule: str
    accent: str
    missing: str
    sequential: tuple[str, ...]
    diverging: tuple[str, ...]

    def classes(self, count: int = 12) -> list[tuple[str, str]]:
        """Background and readable text color of `count` sequential steps."""
        steps = [_at(self.sequential, i / (count - 1)) for i in range(count)]
        return [(step, readable(step)) for step in steps]


LIGHT = Palette(
    paper="#fbfaf7",
    card="#ffffff",
    ink="#1b2126",
    muted="#57616b",
    rule="#e2ded5",
    accent="#1c6675",
    missing="#c9c5bc",
    sequential=("#f5f4ef", *_DEPTHS[:-1]),
    diverging=(
        "#0b4f8a",
        "#4d8fc4",
        "#b3cfe4",
        "#f3f2ee",
        "#f2c89b",
        "#d98032",
        "#8f4206",
    ),
)
DARK = Palette(
    paper="#13171b",
    card="#191e23",
    ink="#e9e8e3",
    muted="#a2abb3",
    rule="#2f363d",
    accent="#6cd3ad",
    missing="#474e56",
    sequential=("#1f242b", *reversed(_DEPTHS[:-2])),
    diverging=(
        "#9fd0ff",
        "#4f9bd9",
        "#28557c",
        "#24292f",
        "#7a4a1c",
        "#d98032",
        "#ffc88f",
    ),
)
MARKS = ("#2a86c4", "#dd6b1f", "#259b73", "#b96a97", "#a2790f")
NEUTRAL = "#868d94"
"""Blue, orange, green, pink, ocher and gray that read on both papers."""

PALETTES: dict[Mode, Palette] = {"light": LIGHT, "dark": DARK}


def template(mode: Mode = "light") -> go.layout.Template:
    """The plotly template of one mode.

    Heatmaps that ask for an automatic color scale get the sequential one, or the
    diverging one when their values have both signs.
    """
    colors = PALETTES[mode]
    axis = {
        "gridcolor": colors.rule,
        "linecolor": colors.rule,
        "zerolinecolor": colors.rule,
        "tickcolor": colors.rule,
        "tickfont": {"color": colors.muted, "size": 11},
        "title": {"font": {"color": colors.muted, "size": 12}, "standoff": 8},
        "zeroline": False,
        "automargin": True,
    }
    bar = {
        "outlinewidth": 0,
        "thickness": 9,
        "ypad": 0,
        "tickfont": {"color": colors.muted, "size": 10},
        "title": {"font": {"color": colors.muted, "size": 11}, "side": "right"},
        "nticks": 5,
    }
    layout = {
        "font": {"family": SANS, "size": 12, "color": colors.ink},
        "title": {"font": {"size": 15, "color": colors.ink}, "x": 0, "xref": "paper"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": list(MARKS),
        "colorscale": {
            "sequential": scale(colors.sequential),
            "sequentialminus": scale(colors.sequential[::-1]),
            "diverging": scale(colors.diverging),
        },
        "coloraxis": {"colorbar": bar},
        "xaxis": axis,
        "yaxis": axis,
        "annotationdefaults": {"font": {"color": colors.muted, "size": 11}},
        "hoverlabel": {
            "bgcolor": colors.card,
            "bordercolor": colors.muted,
            "font": {"family": SANS, "size": 12, "color": colors.ink},
            "align": "left",
            "namelength": 0,
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "traceorder": "normal",
            "font": {"color": colors.muted, "size": 11},
        },
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": colors.muted,
            "activecolor": colors.ink,
        },
        "margin": {"l": 56, "r": 16, "t": 48, "b": 44},
    }
    data = {"heatmap": [{"colorbar": bar}]}
    return go.layout.Template(layout=layout, data=data)


def register() -> None:
    """Make the templates known to plotly as "interp" and "interp_dark".

    The default template stays what it was: choose with
    `figure.update_layout(template="interp_dark")`.
    """
    pio.templates["interp"] = template("light")
    pio.templates["interp_dark"] = template("dark")


def scale(colors: tuple[str, ...]) -> list[list]:
    """Colors at equal steps from 0 to 1, as plotly wants them."""
    last = len(colors) - 1
    return [[round(i / last, 4), color] for i, color in enumerate(colors)]


def luminance(color: str) -> float:
    """Relative luminance in [0, 1].

    Source:
        WCAG 2.2, "relative luminance".
    """
    channels = [value / 255 for value in _rgb(color)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colors, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def readable(background: str) -> str:
    """Black or white, whichever reads better on the background."""
    return max("#000000", "#ffffff", key=lambda ink: contrast(ink, background))


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _at(colors: tuple[str, ...], place: float) -> str:
    """The color at `place` in [0, 1], linear between neighbors."""
    index = min(int(place * (len(colors) - 1)), len(colors) - 2)
    part = place * (len(colors) - 1) - index
    pairs = zip(_rgb(colors[index]), _rgb(colors[index + 1]), strict=True)
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in pairs)
