"""Figures of attention beside saliency: aligned in time, token by token, in numbers."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.viz import theme
from interp.viz.crossattn_reading import chosen_saliency, named
from interp.viz.tokens import literal, visible

POINTS = 1200
"""Points of a waveform: the lowest and highest of each stretch."""

TOKENS = 60
"""Output tokens of an utterance that figures show; the others stay in the store."""

CELLS = 400_000
"""Cells of all maps over frames and channels in one figure."""

ATTENTION, SALIENCY = theme.MARKS[0], theme.MARKS[1]


def aligned(utterance: xr.Dataset, method: str, space: str = "input") -> go.Figure:
    """Sound, spectrogram, attention and saliency on one axis, a row for each token.

    Each row of the two maps runs from its smallest value to its largest. Texts have no
    sound: the axis is then the tokens that were read.

    Args:
        utterance: A node of `interp.probes.crossattn.compare`.
        method: Of saliency.
        space: `input` or `states`.

    Raises:
        InputError: Not such a node, or no such saliency.
    """
    saliency = chosen_saliency(utterance, method, space)
    place, per = places(utterance)
    words = token_names(utterance)
    maps = {
        "attention": utterance["aggregate"].values[:TOKENS],
        f"saliency: {named(method, space)}": saliency.values[:TOKENS],
    }
    parts = _sound(utterance)
    heights = [0.1 if kind == "sound" else 0.2 for kind, _ in parts] + [0.35, 0.35]
    figure = make_subplots(
        rows=len(heights),
        shared_xaxes=True,
        vertical_spacing=0.05,
        row_heights=heights,
        subplot_titles=[name for _, name in _named(parts)] + list(maps),
    )
    for row, (_, trace) in enumerate(parts, start=1):
        figure.add_trace(trace, row=row, col=1)
    for row, (name, rows) in enumerate(maps.items(), start=len(parts) + 1):
        cells = go.Heatmap(
            x=place,
            y=np.arange(len(words)),
            z=_stretched(rows).astype(np.float32),
            customdata=rows.astype(np.float32),
            text=[[word] * len(place) for word in words] if len(place) < 600 else None,
            zmin=0,
            zmax=1,
            autocolorscale=True,
            showscale=False,
            hoverongaps=False,
            hovertemplate=f"token %{{y}} %{{text}}<br>{per}<br>"
            f"{literal(name)}: %{{customdata:.3~g}}<extra></extra>",
        )
        figure.add_trace(cells, row=row, col=1)
        figure.update_yaxes(
            row=row,
            autorange="reversed",
            tickvals=np.arange(len(words)),
            ticktext=words,
            tickfont={"size": 10},
            showgrid=False,
        )
    tall = 15 * len(words) + 24
    sound = sum(70 if kind == "sound" else 120 for kind, _ in parts)
    _finish(figure, utterance, 2 * max(tall, 90) + sound + 150)
    return figure


def token_by_token(utterance: xr.Dataset, method: str) -> go.Figure:
    """One output token at a time, by a slider: both explanations, and the full map.

    Each curve runs from its smallest value to its largest. The map is the saliency
    over frames and channels, where there is one: signed, with zero in the middle of
    the colors, or from its smallest value to its largest where none is negative.

    Args:
        utterance: A node of `interp.probes.crossattn.compare`.
        method: Of saliency.

    Raises:
        InputError: Not such a node, or no such saliency.
    """
    saliency = chosen_saliency(utterance, method, "input").values
    place, per = places(utterance)
    words = token_names(utterance)
    whole = _full_map(utterance, method, len(words))
    figure = make_subplots(
        rows=1 if whole is None else 2, shared_xaxes=True, vertical_spacing=0.06
    )
    last = 1 if whole is None else 2
    curves = {
        "attention": (utterance["aggregate"].values, ".2%", ATTENTION),
        f"saliency ({named(method)})": (saliency, ".3~g", SALIENCY),
    }
    per_token = len(curves) + (whole is not None)
    for token in range(len(words)):
        is_shown = token == 0
        if whole is not None:
            times, channels, cells = whole
            least, most = _range(cells[token])
            heat = go.Heatmap(
                x=times,
                y=channels,
                z=cells[token].T,
                zmin=least,
                zmax=most,
                autocolorscale=True,
                showscale=False,
                visible=is_shown,
                hovertemplate="%{x:.2f} s, channel %{y}<br>%{z:.3~g} nats"
                "<extra></extra>",
            )
            figure.add_trace(heat, row=1, col=1)
        for name, (rows, digits, color) in curves.items():
            line = go.Scatter(
                x=place,
                y=_stretched(rows[token]).astype(np.float32),
                customdata=rows[token].astype(np.float32),
                name=name,
                visible=is_shown,
                mode="lines" if "position_begin" in utterance else "lines+markers",
                line={"color": color, "width": 2, "shape": "hvh"},
                hovertemplate=f"{per}<br>{literal(name)}: %{{customdata:{digits}}}"
                "<extra></extra>",
            )
            figure.add_trace(line, row=last, col=1)
    traces = range(len(words) * per_token)
    steps = [
        {
            "label": word,
            "method": "restyle",
            "args": [{"visible": [i // per_token == token for i in traces]}],
        }
        for token, word in enumerate(words)
    ]
    figure.update_layout(
        sliders=[
            {
                "steps": steps,
                "currentvalue": {"prefix": "output token: "},
                "pad": {"t": 52 if "position_begin" in utterance else 92},
                "bgcolor": theme.NEUTRAL,
                "font": {"color": theme.NEUTRAL, "size": 10},
            }
        ]
    )
    if whole is not None:
        figure.update_yaxes(title="channel", showgrid=False, row=1)
    figure.update_yaxes(tickvals=[0, 1], ticktext=["smallest", "largest"], row=last)
    _finish(figure, utterance, 420 if whole is None else 560)
    return figure


def token_names(utterance: xr.Dataset) -> list[str]:
    """The output tokens that are shown, as plotly shows them."""
    words = utterance["token_text"].values[:TOKENS]
    return [f"{literal(visible(str(w), 14))}" for w in words]


def places(utterance: xr.Dataset) -> tuple[np.ndarray, str]:
    """Where the positions are, and how hovering tells one."""
    if "position_begin" in utterance.coords:
        half = float(utterance.attrs.get("position_ms", 0.0)) / 2000
        return utterance["position_begin"].values + half, "%{x:.2f} s"
    return utterance["position"].values, "token read %{x}"


def _finish(figure: go.Figure, utterance: xr.Dataset, height: int) -> None:
    figure.update_layout(
        template=theme.template(),
        title=literal(visible(str(utterance.attrs.get("name", "")), 80)),
        height=height,
        margin={"l": 92, "r": 16, "t": 56, "b": 56},
    )
    figure.update_annotations(font={"size": 11}, x=0, xanchor="left")
    if "position_begin" in utterance.coords:
        seconds = float(utterance.attrs.get("seconds", utterance["position_begin"][-1]))
        figure.update_xaxes(range=[0, seconds], showgrid=False)
        figure.layout[f"xaxis{_rows(figure)}"].title = "seconds"
        return
    read = [literal(visible(str(w), 12)) for w in utterance["position_text"].values]
    step = max(-(-len(read) // 60), 1)
    figure.update_xaxes(
        tickvals=list(range(0, len(read), step)),
        ticktext=read[::step],
        tickangle=-60,
        showgrid=False,
    )


def _rows(figure: go.Figure) -> str:
    """Number of the lowest axis in plotly's naming."""
    count = sum(
        1 for name in figure.layout.to_plotly_json() if name.startswith("xaxis")
    )
    return "" if count == 1 else str(count)


def _sound(utterance: xr.Dataset) -> list[tuple[str, Any]]:
    """Traces of the waveform and the spectrogram, where there are any."""
    parts: list[tuple[str, Any]] = []
    if "waveform" in utterance:
        wave = utterance["waveform"].values
        rate = float(utterance["waveform"].attrs.get("rate", utterance.attrs["rate"]))
        starts = np.unique(np.linspace(0, len(wave), POINTS // 2 + 1).astype(int)[:-1])
        ends = [f.reduceat(wave, starts) for f in (np.minimum, np.maximum)]
        line = go.Scatter(
            x=np.repeat(starts / rate, 2).astype(np.float32),
            y=np.stack(ends, -1).ravel(),
            mode="lines",
            line={"width": 1, "color": theme.NEUTRAL},
            hoverinfo="skip",
            showlegend=False,
        )
        parts.append(("sound", line))
    if "features" in utterance:
        rows, begin = utterance["features"].values, utterance["frame_begin"].values
        step = max(-(-len(rows) // 800), 1)
        cells = go.Heatmap(
            x=begin[::step],
            z=rows[::step].T.astype(np.float32),
            autocolorscale=False,
            colorscale="Greys",
            showscale=False,
            hovertemplate="%{x:.2f} s, channel %{y}: %{z:.2f}<extra></extra>",
        )
        parts.append(("spectrogram", cells))
    return parts


def _named(parts: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [
        (kind, {"sound": "sound"}.get(kind, "log-mel spectrogram")) for kind, _ in parts
    ]


def _full_map(
    utterance: xr.Dataset, method: str, n_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Times, channels, saliency `[token, frame, channel]`, thinned to what fits."""
    if "saliency_map" not in utterance:
        return None
    cells = utterance["saliency_map"].sel(attribution=method).values[:n_tokens]
    if not np.isfinite(cells).any():
        return None
    times = utterance["frame_begin"].values
    step = max(int(np.ceil(np.sqrt(cells.size / CELLS))), 1)
    n_frames, n_channels = (n // step * step for n in cells.shape[1:])
    cut = cells[:, :n_frames, :n_channels]
    pooled = cut.reshape(len(cut), n_frames // step, step, n_channels // step, step)
    times = times[:n_frames].reshape(-1, step).mean(1)
    channels = np.arange(n_channels).reshape(-1, step).mean(1)
    return times, channels, pooled.mean((2, 4)).astype(np.float32)


def _stretched(rows: np.ndarray) -> np.ndarray:
    """Each row from 0, its smallest value, to 1; NaN stays."""
    least, most = (
        reduce(rows, -1, keepdims=True, initial=start, where=np.isfinite(rows))
        for reduce, start in ((np.min, np.inf), (np.max, -np.inf))
    )
    return (rows - least) / np.maximum(most - least, np.finfo(np.float32).tiny)


def _range(cells: np.ndarray) -> tuple[float, float]:
    """Least and largest value of the colors: about zero if any cell is negative."""
    known = cells[np.isfinite(cells)]
    least, most = (known.min(), known.max()) if known.size else (0.0, 1.0)
    if least < 0:
        most = max(-least, most)
        least = -most
    return float(least), float(most)
