"""Figures of a rhythm: its curves along the tokens, and its coupling beside chance."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.errors import InputError
from interp.viz import theme
from interp.viz.arrays import title, unit
from interp.viz.numbers import interval, percent, signed
from interp.viz.tokens import literal, visible

SHOWN = "10-100"
"""The horizon that is drawn first; the others are in the legend."""

TITLES = {
    "entropy": "entropy at WAAD peaks",
    "receivers": "FAI peaks among those of receiver heads",
    "follows": "FAI peaks at or after a WAAD peak",
}
"""What links compare."""


def rhythm_curves(chain: xr.Dataset) -> go.Figure:
    """Look-back, later influence and entropy along the tokens of one response.

    Below the curves a line of marks shows the preplan tokens, and the anchors of the
    horizon that is drawn first; dots are peaks.

    Args:
        chain: One chain of what `interp.probes.preplan.rhythm` returns.

    Raises:
        InputError: Not such a result.
    """
    _require(chain, "waad", "fai", "preplan", "anchor", "waad_peak", "fai_peak")
    place = chain["token"].values
    words = [literal(visible(str(text), 30)) for text in chain["token_text"].values]
    blue, orange, green = theme.MARKS[:3]
    shown = first_horizon(chain)
    has_entropy = "entropy" in chain
    n_rows = 2 + has_entropy
    figure = make_subplots(rows=n_rows, shared_xaxes=True, vertical_spacing=0.06)

    def add(
        row: int, array: xr.DataArray, name: str, color: str, **more: object
    ) -> None:
        figure.add_scatter(
            x=place,
            y=array.values.astype(np.float32),
            text=words,
            name=name,
            mode="lines",
            line={"color": color, "width": 1.5},
            hovertemplate="%{x} <b>%{text}</b><br>"
            + f"{literal(name)}: %{{y:,.3~r}} {literal(unit(array))}<extra></extra>",
            row=row,
            col=1,
            **more,
        )

    def mark(
        row: int, array: xr.DataArray, peaks: xr.DataArray, name: str, color: str
    ) -> None:
        at = peaks.values.astype(bool)
        figure.add_scatter(
            x=place[at],
            y=array.values[at].astype(np.float32),
            name=name,
            mode="markers",
            marker={"color": color, "size": 6},
            hoverinfo="skip",
            row=row,
            col=1,
        )

    def rug(
        row: int, array: xr.DataArray, marks: xr.DataArray, name: str, color: str
    ) -> None:
        at, known = marks.values.astype(bool), array.values[np.isfinite(array.values)]
        low = float(known.min()) - 0.12 * float(np.ptp(known)) if known.size else 0.0
        figure.add_scatter(
            x=place[at],
            y=np.full(int(at.sum()), low, dtype=np.float32),
            text=[word for word, is_in in zip(words, at, strict=True) if is_in],
            name=name,
            mode="markers",
            marker={
                "symbol": "line-ns-open",
                "color": color,
                "size": 9,
                "line": {"width": 1.5},
            },
            hovertemplate=f"%{{x}} <b>%{{text}}</b><br>{name}<extra></extra>",
            row=row,
            col=1,
        )

    add(1, chain["waad"], "WAAD", blue)
    mark(1, chain["waad"], chain["waad_peak"], "WAAD peaks", blue)
    rug(1, chain["waad"], chain["preplan"], "preplan tokens", orange)
    for horizon in map(str, chain["horizon"].values):
        fai = chain["fai"].sel(horizon=horizon)
        own = horizon == shown
        name = f"FAI {horizon}"
        color = green if own else theme.NEUTRAL
        add(2, fai, name, color, visible=True if own else "legendonly")
        if own:
            mark(2, fai, chain["fai_peak"].sel(horizon=horizon), "FAI peaks", green)
            anchors = chain["anchor"].sel(horizon=horizon)
            rug(2, fai, anchors, "anchor tokens", green)
    if has_entropy:
        add(3, chain["entropy"], "entropy", theme.MARKS[3])
    figure.update_layout(
        template=theme.template(),
        title="rhythm",
        height=150 + 150 * n_rows,
        margin={"t": 88},  # the legend has two lines
    )
    for row, name in enumerate(("waad", "fai", "entropy")[:n_rows], 1):
        short = {"waad": "WAAD", "fai": "FAI", "entropy": "entropy"}[name]
        axis = f"{short} ({literal(unit(chain[name]))})"
        figure.update_yaxes(title=axis, row=row, col=1)
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(title="token of the response", row=n_rows, col=1)
    return figure


def lift_plot(found: xr.Dataset) -> go.Figure:
    """How much oftener peaks meet than by chance, beside what chance alone gives.

    Args:
        found: What `interp.probes.preplan.rhythm` returns.

    Raises:
        InputError: Not such a result.
    """
    _require(found, "mean_lift", "mean_expected", "lift_interval", "drawn")
    told = list(rows_of(found))
    lifts = [found["mean_lift"].sel(row).item() for _, row in told]
    low, high = np.array([found["lift_interval"].sel(row).values for _, row in told]).T
    null = np.array([null_range(found, row) for _, row in told]).T
    place = np.arange(len(told), dtype=float)
    middle = (null[0] + null[1]) / 2
    chance = [
        f"95 % of {found.sizes['draw']:,} draws: {percent(a)} to {percent(b)}"
        for a, b in null.T
    ]
    names = [name for name, _ in told]
    figure = go.Figure(
        [
            go.Scatter(
                x=middle,
                y=place,
                mode="markers",
                name="chance, middle 95 %",
                marker={"color": theme.NEUTRAL, "size": 9, "symbol": "square"},
                error_x={
                    "type": "data",
                    "array": np.nan_to_num(null[1] - middle),
                    "color": theme.NEUTRAL,
                    "thickness": 9,
                    "width": 0,
                },
                opacity=0.45,
                text=chance,
                hovertemplate="%{text}<extra></extra>",
            ),
            go.Scatter(
                x=lifts,
                y=place,
                mode="markers",
                name="observed, with interval over texts",
                marker={"symbol": "diamond", "size": 11, "color": theme.MARKS[1]},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": np.nan_to_num(high - lifts),
                    "arrayminus": np.nan_to_num(lifts - low),
                    "color": theme.MARKS[1],
                    "thickness": 2,
                    "width": 6,
                },
                hovertemplate=[
                    f"<b>{name}</b><br>lift {signed(lift)}<br>interval "
                    f"{interval(a, b)}<extra></extra>"
                    for name, lift, a, b in zip(names, lifts, low, high, strict=True)
                ],
            ),
        ]
    )
    figure.add_vline(x=0, line={"width": 1, "color": theme.NEUTRAL})
    figure.update_layout(
        template=theme.template(),
        title=title(found["mean_lift"]),
        height=112 + 34 * len(names),
    )
    figure.update_yaxes(
        tickvals=place.tolist(),
        ticktext=names,
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
    )
    figure.update_xaxes(
        title="lift: observed over expected, \u2212 1", tickformat="+.0%"
    )
    return figure


def rows_of(found: xr.Dataset) -> list[tuple[str, dict[str, str]]]:
    """What is compared, by name: a link at a horizon; the first depends on none."""
    horizons = [str(each) for each in found["horizon"].values]
    told = []
    for link in map(str, found["link"].values):
        own = horizons[:1] if link == "entropy" else horizons
        for horizon in own:
            if np.isfinite(found["mean_lift"].sel(link=link, horizon=horizon)):
                tail = "" if link == "entropy" else f", {horizon}"
                told.append((TITLES[link] + tail, {"link": link, "horizon": horizon}))
    return told


def null_range(found: xr.Dataset, row: dict[str, str]) -> tuple[float, float]:
    """Lifts between which 95 % of the draws of chance lie, over all chains."""
    drawn = found["drawn"].sel(row).mean("chain").values
    lifts = drawn / found["mean_expected"].sel(row).item() - 1
    low, high = np.quantile(lifts, [0.025, 0.975])
    return float(low), float(high)


def first_horizon(found: xr.Dataset) -> str:
    """The horizon that is told of first."""
    known = [str(each) for each in found["horizon"].values]
    return SHOWN if SHOWN in known else known[0]


def _require(found: xr.Dataset, *names: str) -> None:
    missing = [name for name in names if name not in getattr(found, "data_vars", ())]
    if missing:
        raise InputError(
            f"A rhythm with {', '.join(missing)} is drawn; it has none. Pass what "
            "interp.probes.preplan.rhythm returned."
        )


__all__ = ["first_horizon", "lift_plot", "null_range", "rhythm_curves", "rows_of"]
