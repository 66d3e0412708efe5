"""The figure of a window: cells at their place, three scales, what colors leave out."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from interp.calls import KeptCall
from interp.errors import InputError, ShapeError
from interp.kernels import statistics
from interp.kernels.definitions import Lse
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule
from interp.map_windows import of_call
from interp.viz.long_map import (
    cell_table,
    counted,
    heading,
    long_map,
    scaled,
    with_handles,
)

N = 200
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def head():
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, N, 8, generator=draw) for _ in range(2))
    call = AttentionCall(query, key, key, ScoreRule(0.5), MaskRule.causal(N))
    lse = statistics.compute(call, [Lse()])["lse"]
    tokens = tuple(HOSTILE if i == 3 else f"w{i}" for i in range(N))
    return of_call(KeptCall(call, lse, tokens, tokens, {"layer": 2}), 0)


def cells(figure: Any) -> Any:
    return figure.data[0]


def test_near_cells_are_weights_at_their_tokens(head):
    window = head.window(20, 60, 10, 30)
    figure: Any = long_map(window, scale="linear")
    wanted = window["block_mean"].values
    assert np.array_equal(cells(figure).z, wanted, equal_nan=True)
    assert cells(figure).x.tolist() == list(range(10, 30))
    assert figure.layout.xaxis.ticktext[0] == "w10"
    assert figure.layout.yaxis.range == (59.5, 19.5)
    assert cells(figure).text[0][1] == "query 20 w20<br>key 11 w11"
    assert figure.layout.title.text == "L2.H0: single weights"


def test_far_cells_say_how_much_they_are(head):
    window = head.window(cells=50)
    figure: Any = long_map(window)
    assert window.attrs["size"] == 4
    assert cells(figure).x[0] == 1.5
    assert figure.layout.xaxis.range == (-0.5, 199.5)
    assert heading(window).endswith("cells of 4 x 4 tokens")
    assert not figure.layout.xaxis.ticktext
    assert "query %{y" not in cells(figure).hovertemplate
    assert cells(long_map(head.window())).text is None


def test_tokens_are_never_markup(head):
    figure: Any = long_map(head.window(0, 10, 0, 10))
    assert "<script" not in figure.to_json().replace("\\u003c", "<")
    assert "&lt;script" in figure.layout.xaxis.ticktext[3]


@pytest.mark.parametrize("scale", ["linear", "log", "rank"])
def test_colors_rise_with_the_weight_and_gaps_stay_gaps(head, scale):
    values = head.window(cells=100)["block_max"].values
    colors = scaled(values, np.ones_like(values, bool), scale)
    known = np.isfinite(values)
    assert np.array_equal(np.isfinite(colors.places), known)
    order = np.argsort(values[known])
    assert (np.diff(colors.places[known][order]) >= 0).all()
    assert colors.places[known].min() >= 0
    assert colors.places[known].max() <= colors.top * (1 + 1e-12)
    places, labels = colors.ticks
    assert len(places) == len(labels) > 1


def test_a_tick_of_each_scale_is_the_value_that_has_its_color():
    values = np.array([[0.001, 0.01], [0.1, 1.0]])
    everything = np.ones_like(values, bool)
    for scale in ("linear", "log"):
        colors = scaled(values, everything, scale)
        told = dict(zip(colors.ticks[1], colors.ticks[0], strict=True))
        assert told["1" if scale == "log" else "1.00"] == pytest.approx(
            colors.places[1, 1]
        )
    assert scaled(values, everything, "log").ticks[1] == ["0.001", "0.01", "0.1", "1"]
    ranks = scaled(values, everything, "rank").places
    assert ranks.ravel().tolist() == [0.125, 0.375, 0.625, 0.875]


def test_sinks_and_diagonal_are_left_out_of_the_colors_and_still_drawn(head):
    window = head.window(cells=100)
    values = window["block_max"].values.astype(np.float64)
    values[:, 0] = 0.9
    np.fill_diagonal(values, 0.8)
    left = counted(window, sinks=2, diagonal=3)
    assert not left[:, 0].any()
    assert not np.diagonal(left).any()
    assert left[9, 3]
    plain = scaled(values, counted(window), "linear")
    colors = scaled(values, left, "linear")
    assert plain.top == 0.9
    assert colors.top == np.nanmax(values[left])
    assert np.isfinite(colors.places[:, 0]).all()
    nothing = np.zeros_like(values, bool)
    assert scaled(values, nothing, "linear").top == 0.9


def test_windows_without_any_pair_or_weight_are_drawn(head):
    for scale in ("linear", "log", "rank"):
        assert long_map(head.window(0, 5, 100, 110), scale=scale).data
        zeros = head.window(50, 55, 0, 10)
        zeros["block_max"] = xr.zeros_like(zeros["block_max"])
        assert long_map(zeros, scale=scale).data


def test_a_box_catches_marks_wherever_it_is_drawn(head):
    window = head.window()
    marks: Any = with_handles(long_map(window), window).data[1]
    assert (min(marks.x), max(marks.x)) == (0, N - 1)
    assert len(marks.x) == 1600
    few: Any = with_handles(long_map(window), head.window(5, 6, 2, 4)).data[1]
    assert len(few.x) == 2


def test_the_table_has_a_row_for_each_cell_that_has_a_pair(head):
    window = head.window(10, 20, 10, 20)
    table = cell_table(window)
    assert len(table) == 55
    row = table[(table["query"] == 15) & (table["key"] == 12)].iloc[0]
    assert row["block_mean"] == window["block_mean"].values[5, 2]
    assert row["query_token"] == "w15"


def test_what_is_no_window_is_refused(head):
    with pytest.raises(InputError, match=r"window\(\)"):
        long_map(xr.Dataset())
    with pytest.raises(InputError, match="linear, log, rank"):
        long_map(head.window(), scale="square")
    with pytest.raises(ShapeError):
        long_map(head.window().isel(query_block=0))
