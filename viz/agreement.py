"""How detectors agree: rank correlations, and heads that several of them choose."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from interp.errors import InputError
from interp.viz import theme
from interp.viz.arrays import require
from interp.viz.numbers import decimals, interval, number, plural
from interp.viz.tokens import literal

COLUMNS = 15
"""Intersections drawn, the largest; the rest is summed up."""

WRITTEN = 16
"""Detectors up to which each cell holds its number."""

SURE = 0.05
"""Corrected p below which a correlation is called sure."""

RHO = "\N{GREEK SMALL LETTER RHO}"


def correlation_map(agreement: xr.Dataset) -> go.Figure:
    """Rank correlation of every two detectors, those that agree next to each other.

    Colors run from -1 to 1. Bold numbers stand where p, corrected over all pairs, is
    below 0.05.

    Args:
        agreement: As `interp.probes.agreement.agreement` returns it.

    Raises:
        InputError: Not such a result.
    """
    wanted = {"rho", "rho_interval", "rho_within", "n_heads", "p_holm"}
    _require(agreement, xr.Dataset, wanted, "correlation_map", "agreement(heads)")
    order = by_similarity(agreement["rho"])
    agreement = agreement.isel(detector=order, other=order)
    names = [literal(name) for name in agreement["detector"].values]
    rho = agreement["rho"].values
    shown = np.where(np.tri(len(names), k=-1, dtype=bool), rho, np.nan)[1:, :-1]
    texts, hovers = _cells(agreement, names)
    figure = go.Figure(
        go.Heatmap(
            x=names[:-1],
            y=names[1:],
            z=shown.astype(np.float32),
            zmin=-1,
            zmax=1,
            autocolorscale=True,
            colorbar={"title": {"text": f"rank correlation {RHO}"}},
            text=texts,
            texttemplate="%{text}" if len(names) <= WRITTEN else None,
            hovertext=hovers,
            hovertemplate="%{hovertext}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
        )
    )
    figure.update_layout(
        template=theme.template(),
        title="Agreement of detectors",
        height=round(float(np.clip(420 / len(names), 16, 32)) * len(names)) + 104,
    )
    figure.update_xaxes(showgrid=False, ticks="", tickangle=-35)
    figure.update_yaxes(showgrid=False, ticks="", ticksuffix=" ", autorange="reversed")
    return figure


def overlap_plot(intersections: pd.DataFrame) -> go.Figure:
    """Heads that are among the strongest of several detectors at once.

    A column is a combination of detectors, its bar the number of heads that are in
    exactly these top sets. The bar beside a detector's name is its whole top set, gray
    for the heads that are in no other.

    Args:
        intersections: As `interp.probes.agreement.intersections` returns it.

    Raises:
        InputError: Not such a result, or no set in it.

    Source:
        Lex et al. 2014, "UpSet: visualization of intersecting sets".
    """
    wanted = {"detectors", "size", "heads"}
    origin = "intersections(heads)"
    _require(intersections, pd.DataFrame, wanted, "overlap_plot", origin)
    if intersections.empty:
        raise InputError(
            "overlap_plot draws the intersections of top sets; got none. Run detectors "
            "whose values rank heads."
        )
    alone, shared = _sizes(intersections)
    names = sorted(alone, key=lambda name: -shared[name])
    columns = intersections[intersections["detectors"].map(len) > 1]
    drawn, rest = columns.iloc[:COLUMNS], columns.iloc[COLUMNS:]
    gray, blue = theme.NEUTRAL, theme.MARKS[0]
    figure = make_subplots(
        rows=2,
        cols=2,
        column_widths=[0.2, 0.8],
        row_heights=[112, 24 * len(names)],
        horizontal_spacing=0.02,
        vertical_spacing=0.03,
        specs=[[None, {}], [{}, {}]],
    )
    rows = {name: row for row, name in enumerate(names)}
    labels = [f"{literal(name)}\N{NO-BREAK SPACE}" for name in names]
    for counts, color, what in ((shared, blue, "also in"), (alone, gray, "in no")):
        figure.add_bar(
            x=[counts[name] for name in names],
            y=list(rows.values()),
            orientation="h",
            marker={"color": color, "line": {"width": 0}},
            hovertemplate=[
                f"<b>{label}</b>: {plural(alone[name] + shared[name], 'head')}<br>"
                f"{counts[name]} {what} other top set<extra></extra>"
                for name, label in zip(names, labels, strict=True)
            ],
            row=2,
            col=1,
        )
    hovers = [
        _heads(*each) for each in zip(drawn["detectors"], drawn["heads"], strict=True)
    ]
    figure.add_bar(
        x=list(range(len(drawn))),
        y=drawn["size"].tolist(),
        text=drawn["size"].tolist(),
        textposition="outside",
        cliponaxis=False,
        marker={"color": blue, "line": {"width": 0}},
        hovertemplate=hovers,
        row=1,
        col=2,
    )
    grid = np.array([(x, y) for x in range(len(drawn)) for y in rows.values()])
    _dots(figure, grid.reshape(-1, 2), gray, 0.28, None)
    for column, (members, hover) in enumerate(
        zip(drawn["detectors"], hovers, strict=True)
    ):
        places = sorted(rows[name] for name in members)
        line = np.array([(column, place) for place in places])
        _dots(figure, line, blue, 1.0, hover)
    if len(rest):
        figure.add_annotation(
            text=f"{plural(len(rest), 'more combination')}, "
            f"{plural(int(rest['size'].sum()), 'head')} together",
            x=1,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="right",
            yanchor="top",
            showarrow=False,
        )
    figure.update_layout(
        template=theme.template(),
        title="Heads in several top sets",
        barmode="stack",
        bargap=0.35,
        showlegend=False,
        height=112 + 24 * len(names) + 104,
    )
    largest = int(drawn["size"].max()) if len(drawn) else 1
    figure.update_yaxes(showgrid=False, showticklabels=False, ticks="")
    figure.update_yaxes(title="heads", range=[0, 1.2 * largest], row=1, col=2)
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], row=2)
    figure.update_yaxes(
        tickvals=list(rows.values()),
        ticktext=labels,
        showticklabels=True,
        row=2,
        col=1,
    )
    figure.update_xaxes(showgrid=False, ticks="")
    figure.update_xaxes(title="heads in the top set", nticks=3, row=2, col=1)
    span = [-0.6, max(len(drawn), 8) - 0.4]
    figure.update_xaxes(showticklabels=False, range=span, col=2)
    return figure


def by_similarity(rho: xr.DataArray) -> list[int]:
    """An order of the detectors in which those that agree are neighbors.

    Source:
        Average linkage with ordered leaves (Bar-Joseph et al. 2001).
    """
    values = np.nan_to_num(require(rho, ("detector", "other"), "by_similarity").values)
    if len(values) < 3:
        return list(range(len(values)))
    apart = squareform(1 - (values + values.T) / 2, checks=False)
    return leaves_list(linkage(apart, "average", optimal_ordering=True)).tolist()


def _cells(
    agreement: xr.Dataset, names: list[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """What stands in each cell of the lower triangle, and what hovering tells."""
    texts, hovers = [], []
    for row in range(1, len(names)):
        texts.append([""] * (len(names) - 1))
        hovers.append([""] * (len(names) - 1))
        for column in range(row):
            cell = agreement.isel(detector=row, other=column)
            value, p = cell["rho"].item(), cell["p_holm"].item()
            shown = decimals(value)
            texts[-1][column] = f"<b>{shown}</b>" if p < SURE else shown
            hovers[-1][column] = (
                f"<b>{names[row]}</b> and <b>{names[column]}</b><br>"
                f"{RHO} = {number(value)}, interval "
                f"{interval(*cell['rho_interval'].values)}<br>"
                f"within layers {number(cell['rho_within'].item())}<br>"
                f"{plural(cell['n_heads'].item(), 'head')}, p = {number(p)} corrected"
            )
    return texts, hovers


def _sizes(intersections: pd.DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """Heads of each detector's top set that are in no other, and that are."""
    alone: dict[str, int] = {}
    shared: dict[str, int] = {}
    counted = zip(intersections["detectors"], intersections["size"], strict=True)
    for members, size in counted:
        for name in members:
            alone.setdefault(name, 0)
            shared.setdefault(name, 0)
            (shared if len(members) > 1 else alone)[name] += int(size)
    return alone, shared


def _heads(members: tuple[str, ...], heads: str, most: int = 12) -> str:
    """What hovering tells of a combination."""
    names = heads.split(",")
    lines = [", ".join(names[i : i + 6]) for i in range(0, min(len(names), most), 6)]
    if len(names) > most:
        lines.append(f"and {len(names) - most} more")
    which = ", ".join(literal(name) for name in members)
    return f"in exactly <b>{which}</b><br>{'<br>'.join(lines)}<extra></extra>"


def _dots(
    figure: go.Figure, places: np.ndarray, color: str, opacity: float, hover: str | None
) -> None:
    """Dots of the matrix; those that tell something are joined by a line."""
    figure.add_scatter(
        x=places[:, 0].tolist(),
        y=places[:, 1].tolist(),
        mode="markers" if hover is None else "lines+markers",
        marker={"color": color, "size": 10, "opacity": opacity},
        line={"color": color, "width": 2},
        hoverinfo="skip" if hover is None else None,
        hovertemplate=hover,
        row=2,
        col=2,
    )


def _require(
    value: object, kind: type, wanted: set[str], figure: str, origin: str
) -> None:
    names = set(value) if isinstance(value, kind) else set()  # pyright: ignore
    if missing := wanted - {str(name) for name in names}:
        raise InputError(
            f"{figure} draws what {origin} returns; got {type(value).__name__} without "
            f"{', '.join(sorted(missing))}. Pass that."
        )
