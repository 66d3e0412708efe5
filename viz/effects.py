"""Figures of ablations: effects beside their controls, and item by item."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.errors import InputError
from interp.viz import theme
from interp.viz.arrays import finite
from interp.viz.numbers import interval, number, signed
from interp.viz.tokens import literal

GRID = ("depth", "length")
"""Labels of items that make a grid: rows, then columns."""


def effect_plot(effects: xr.Dataset) -> go.Figure:
    """Effect of each treatment with its interval, above those of its random controls.

    The zero line is the untouched model. Where the task cannot be interpreted, all is
    gray.

    Args:
        effects: As `interp.interventions.paired_effects` returns it.

    Raises:
        InputError: Not such a result.
    """
    _require(effects, "effect", "effect_interval", "control")
    names = [str(name) for name in effects["intervention"].values]
    rows = np.arange(len(names), dtype=float)
    values = effects["effect"].values
    low, high = effects["effect_interval"].transpose("bound", ...).values
    control = effects["control"].transpose("intervention", "draw").values
    unit = literal(effects.attrs.get("units", ""))
    known = np.isfinite(control)
    treated = [
        theme.MARKS[1] if is_told else theme.NEUTRAL
        for is_told in effects["interpretable"].values
    ]
    shown = [
        f"<b>{literal(name)}</b><br>{signed(value)} {unit}<br>interval "
        f"{interval(a, b)}<extra></extra>"
        for name, value, a, b in zip(names, values, low, high, strict=True)
    ]
    figure = go.Figure(
        [
            go.Scatter(
                x=control[known],
                y=(rows[:, None] + _spread(control))[known],
                mode="markers",
                name="random controls",
                showlegend=bool(known.any()),
                marker={
                    "symbol": "circle-open",
                    "size": 8,
                    "color": theme.NEUTRAL,
                    "line": {"width": 1.5},
                },
                hovertemplate=f"a random control: %{{x:,.3~r}} {unit}<extra></extra>",
            ),
            go.Scatter(
                x=values,
                y=rows,
                mode="markers",
                name="effect, with interval",
                showlegend=True,
                marker={"symbol": "diamond", "size": 11, "color": treated},
                error_x=_whiskers(values, low, high, theme.NEUTRAL),
                hovertemplate=shown,
            ),
        ]
    )
    figure.add_vline(x=0, line={"width": 1, "color": theme.NEUTRAL})
    figure.update_layout(
        template=theme.template(),
        title=str(effects.attrs.get("long_name", "effect")),
        height=112 + 56 * len(names),
    )
    figure.update_yaxes(
        tickvals=rows.tolist(),
        ticktext=[literal(name) for name in names],
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
    )
    figure.update_xaxes(title=f"change of the {literal(measured(effects))} ({unit})")
    return figure


def item_grid(items: xr.DataArray, controls: xr.DataArray | None = None) -> go.Figure:
    """Results by length and depth, a panel for the untouched model and each treatment.

    Args:
        items: A metric over (intervention, item), with the labels `length` and `depth`
            of the items; items that share both are averaged.
        controls: The same of random controls, which become one panel, their mean.

    Raises:
        InputError: Items without these labels.
    """
    panels = {str(name): items.sel(intervention=name) for name in _names(items)}
    if "none" in panels:
        panels = {"untouched": panels.pop("none"), **panels}
    if controls is not None and controls.sizes["intervention"]:
        panels["random controls, mean"] = controls.mean("intervention")
    if not has_grid(items):
        raise InputError(
            f"A grid of items needs the labels {' and '.join(GRID)}; got "
            f"{', '.join(map(str, items.coords))}. Take a task that hides something."
        )
    grids = [_grid(panel) for panel in panels.values()]
    unit = literal(items.attrs.get("units", ""))
    high = max(float(np.nanmax(grid, initial=0.0)) for _, _, grid in grids)
    if items.attrs.get("units") != "nats":
        high = 1.0
    figure = make_subplots(
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[literal(name) for name in panels],
    )
    for column, (depths, lengths, grid) in enumerate(grids, 1):
        cells = go.Heatmap(
            x=[number(int(length)) for length in lengths],
            y=[f"{depth:g}" for depth in depths],
            z=grid.astype(np.float32),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            text=[[number(value, 2) for value in row] for row in grid],
            texttemplate="%{text}" if grid.size <= 60 else None,
            hovertemplate="length %{x}, depth %{y}: %{z:.3~r} "
            + f"{unit}<extra></extra>",
        )
        figure.add_trace(cells, row=1, col=column)
    figure.update_layout(
        template=theme.template(),
        title=str(items.attrs.get("long_name", items.name)),
        height=130 + max(26 * len(grids[0][0]), 100),
        coloraxis={
            "autocolorscale": True,
            "cmin": 0.0,
            "cmax": high or 1.0,
            "colorbar": {"title": {"text": unit}},
        },
    )
    figure.update_annotations(font_size=12)
    figure.update_xaxes(title="length (tokens)", type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    figure.update_yaxes(title="depth", col=1)
    return figure


def item_scatter(items: xr.DataArray) -> go.Figure:
    """Each item with a treatment against the same item untouched.

    Args:
        items: A metric over (intervention, item), the untouched model first.

    Raises:
        InputError: No treatment.
    """
    base, *treatments = _names(items)
    if not treatments:
        raise InputError(
            "Items are compared with the untouched model; the table holds no other. "
            "Pass one with a treatment."
        )
    unit = literal(items.attrs.get("units", ""))
    x = items.sel(intervention=base).values
    known = finite(items)
    ends = [float(known.min()), float(known.max())] if known.size else [0.0, 1.0]
    figure = go.Figure(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            name="no change",
            line={"color": theme.NEUTRAL, "width": 1, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    for index, name in enumerate(treatments):
        figure.add_scatter(
            x=x,
            y=items.sel(intervention=name).values,
            text=[literal(str(item)) for item in items["item"].values],
            mode="markers",
            name=literal(str(name)),
            marker={
                "color": theme.MARKS[(index + 1) % len(theme.MARKS)],
                "symbol": ("diamond", "circle", "square", "cross", "x")[index % 5],
                "size": 7,
                "opacity": 0.8,
            },
            hovertemplate="<b>%{text}</b><br>untouched %{x:,.3~r}, "
            + f"with it %{{y:,.3~r}} {unit}<extra></extra>",
        )
    figure.update_layout(
        template=theme.template(),
        title=str(items.attrs.get("long_name", items.name)),
        height=340,
    )
    figure.update_xaxes(title=f"untouched ({unit})")
    figure.update_yaxes(title=f"with the ablation ({unit})")
    return figure


def has_grid(items: xr.DataArray) -> bool:
    """Whether every item tells its length and depth."""
    return all(
        label in items.coords and items[label].dtype.kind in "if" for label in GRID
    )


def measured(effects: xr.Dataset | xr.DataTree) -> str:
    """What a metric is, as a part of a sentence."""
    metric = str(effects.attrs.get("metric", ""))
    return MEASURES.get(metric, str(effects.attrs.get("long_name", metric)))


def _spread(control: np.ndarray) -> np.ndarray:
    """Heights of controls below their treatment, so that equal ones show."""
    count = control.shape[1]
    return np.broadcast_to(
        0.16 + 0.28 * (np.arange(count) * 7 % 20) / 20, control.shape
    )


def _grid(panel: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depths, lengths, and the mean of the items of each."""
    frame = panel.to_dataframe(name="value").reset_index()
    table = frame.pivot_table("value", *GRID, aggfunc="mean", dropna=False)
    return table.index.to_numpy(), table.columns.to_numpy(), table.to_numpy()


def _whiskers(
    values: np.ndarray, low: np.ndarray, high: np.ndarray, color: str
) -> dict:
    return {
        "type": "data",
        "symmetric": False,
        "array": np.nan_to_num(high - values),
        "arrayminus": np.nan_to_num(values - low),
        "color": color,
        "thickness": 2,
        "width": 6,
    }


def _names(items: xr.DataArray) -> list:
    return list(items["intervention"].values)


def _require(effects: xr.Dataset, *names: str) -> None:
    missing = [name for name in names if name not in effects]
    if missing:
        raise InputError(
            f"Effects with {', '.join(names)} are drawn; got "
            f"{', '.join(map(str, effects.data_vars)) or 'none'}. Pass what "
            "paired_effects returned."
        )


MEASURES = {
    "nll": "negative log-likelihood per token",
    "accuracy": "share of tokens that are predicted",
    "exact": "share of exact answers",
    "choice": "share of right choices",
    "kl": "KL divergence from the untouched model",
    "agreement": "share of tokens predicted as the untouched model does",
}
"""What is measured, as nouns."""
