"""Agreement beside chance and published ranges; what deletion and insertion show."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.viz import theme
from interp.viz.crossattn_reading import interval, named, pairs
from interp.viz.numbers import decimals
from interp.viz.tokens import literal

DASHES = ("solid", "dot", "dashdot", "longdash")
"""Of lines: the first as long as there are colors, then the next."""


def agreement_plot(agreement: xr.Dataset, published: Sequence[dict]) -> go.Figure:
    """Correlation of attention with each saliency: interval, chance, published ranges.

    Args:
        agreement: The node `agreement` of `interp.probes.crossattn.compare`.
        published: `what`, `low` and `high` of correlations to show beside ours.
    """
    names, values, bounds, chance = [], [], [], []
    for space, method in pairs(agreement):
        one = agreement.sel(space=space, attribution=method)
        names.append(named(method, space))
        values.append(one["overall"].sel(measure="pearson").item())
        bounds.append(interval(one, "pearson"))
        chance.append(one["overall_null"].sel(measure="pearson").values.tolist())
    middle = np.array(values)
    low, high = np.array(bounds).T if bounds else (middle, middle)
    figure = go.Figure()
    for name, (first, last) in zip(names, chance, strict=True):
        figure.add_bar(
            y=[name],
            x=[last - first],
            base=[first],
            orientation="h",
            marker={"color": theme.NEUTRAL, "opacity": 0.35},
            name="chance, middle 95 %",
            legendgroup="chance",
            showlegend=name == names[0],
            hovertemplate=f"chance: {decimals(first)} to {decimals(last)}"
            "<extra></extra>",
        )
    for place, range_ in enumerate(published):
        ends = float(range_["low"]), float(range_["high"])
        label = f"published: {literal(str(range_['what']))}"
        figure.add_bar(
            y=[_short(label)],
            x=[ends[1] - ends[0]],
            base=[ends[0]],
            orientation="h",
            marker={"color": theme.MARKS[2], "opacity": 0.55},
            name="published range",
            legendgroup="published",
            showlegend=place == 0,
            hovertemplate=f"{label}<br>{ends[0]:.2f} to {ends[1]:.2f}<extra></extra>",
        )
    figure.add_scatter(
        y=names,
        x=middle,
        mode="markers",
        marker={"size": 10, "color": theme.MARKS[0]},
        error_x={"array": high - middle, "arrayminus": middle - low, "thickness": 2},
        name="this model, with its interval",
        customdata=np.stack([low, high], -1),
        hovertemplate="%{y}: %{x:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})"
        "<extra></extra>",
    )
    rows = len(names) + len(published)
    figure.update_layout(
        template=theme.template(),
        title="Pearson correlation of attention with saliency",
        height=34 * rows + 120,
        barmode="overlay",
        bargap=0.45,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title="Pearson correlation", zeroline=True)
    return figure


def curve_plot(curves: Sequence[xr.Dataset], direction: str) -> go.Figure:
    """What is left of the probability as cells go, or come back: mean over tokens.

    Args:
        curves: The nodes `curves` of all utterances.
        direction: `deletion` or `insertion`.
    """
    together = xr.concat(
        [each["curve"].drop_vars("token", errors="ignore") for each in curves],
        "token",
        join="outer",
    )
    own = together.sel(direction=direction)
    mean = own.mean("token")
    figure = go.Figure()
    kinds = [str(each) for each in mean["explanation"].values]
    looks = cycle((color, dash) for dash in DASHES for color in theme.MARKS)
    for kind in sorted(kinds, key=lambda each: (each == "random", kinds.index(each))):
        color, dash = (theme.NEUTRAL, "dash") if kind == "random" else next(looks)
        figure.add_scatter(
            x=mean["fraction"].values,
            y=mean.sel(explanation=kind).values,
            mode="lines",
            name=kind.replace("_", " ").replace("@", ", "),
            visible=True if "@" not in kind else "legendonly",
            line={"color": color, "width": 2, "dash": dash},
            hovertemplate="%{x:.0%}: %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        template=theme.template(),
        title=direction,
        height=max(380, 20 * len(kinds) + 100),
        legend={
            "orientation": "v",
            "x": 1.02,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
        },
    )
    what = "replaced" if direction == "deletion" else "put back"
    figure.update_xaxes(title=f"{what}, largest first", tickformat=".0%")
    figure.update_yaxes(title="probability of the token", rangemode="tozero")
    return figure


def _short(label: str) -> str:
    return label if len(label) < 44 else label[:43] + "\u2026"
