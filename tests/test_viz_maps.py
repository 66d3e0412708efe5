from typing import Any

import numpy as np
import pytest
import xarray as xr
from hand_atlas import hand_atlas

from interp.errors import InputError, ShapeError
from interp.viz import theme
from interp.viz.arrays import whole_ticks
from interp.viz.maps import channel_map, head_map


def heads(values, **attrs):
    attrs = {"units": "fraction", "long_name": "mass on the first token"} | attrs
    coords = {"kv_head": ("head", np.arange(np.shape(values)[1]) // 2)}
    return xr.DataArray(values, dims=("layer", "head"), coords=coords, attrs=attrs)


def cells(figure: Any) -> Any:
    return figure.data[0]


def test_a_map_shows_every_head_at_its_layer_with_the_unit_and_the_title():
    values = np.arange(12.0).reshape(3, 4)
    figure = head_map(heads(values))
    assert np.array_equal(cells(figure).z, values.T)
    assert cells(figure).colorbar.title.text == "fraction"
    assert figure.layout.title.text == "mass on the first token"
    assert figure.layout.xaxis.title.text == "layer"
    assert "L%{x}.H%{y}" in cells(figure).hovertemplate


def test_axes_may_come_in_any_order():
    array = heads(np.arange(12.0).reshape(3, 4))
    assert np.array_equal(
        cells(head_map(array)).z, cells(head_map(array.transpose())).z
    )


def test_colors_of_shares_start_at_zero_and_signed_ones_are_symmetric():
    assert cells(head_map(heads(np.full((2, 2), 0.5)))).zmin == 0
    signed = cells(head_map(heads(np.array([[-3.0, 1.0]]))))
    assert (signed.zmin, signed.zmax) == (-3, 3)


def test_hovering_shows_the_interval_where_there_is_one():
    array = heads(np.array([[0.5, 0.25]]))
    bounds = xr.DataArray(
        [[[0.4, 0.6], [np.nan, np.nan]]], dims=("layer", "head", "bound")
    )
    text = np.array(cells(head_map(array, bounds)).text)
    assert text[0, 0] == "<br>interval 0.400 to 0.600"
    assert text[1, 0] == ""


def test_intervals_that_are_all_unknown_leave_no_trace_in_the_figure():
    array = heads(np.full((2, 2), 0.5))
    bounds = xr.DataArray(np.full((2, 2, 2), np.nan), dims=("layer", "head", "bound"))
    assert cells(head_map(array, bounds)).text is None


def test_missing_heads_are_drawn_apart_from_zero():
    figure: Any = head_map(heads(np.array([[0.0, np.nan]])))
    assert len(figure.data) == 2
    assert np.isfinite(figure.data[1].z).sum() == 1
    figure = head_map(heads(np.zeros((1, 2))))
    assert len(figure.data) == 1


def test_a_model_without_any_number_still_has_a_map():
    figure = head_map(heads(np.full((2, 2), np.nan)))
    assert not np.isfinite(cells(figure).z).any()


def test_heads_of_one_group_are_not_separated():
    assert len(head_map(heads(np.zeros((1, 6)))).layout.shapes) == 2
    alone = heads(np.zeros((1, 3))).assign_coords(kv_head=("head", [0, 1, 2]))
    assert len(head_map(alone).layout.shapes) == 0


def test_classes_are_named_on_the_color_bar():
    split = heads(
        np.array([[-1.0, 0.0], [1.0, np.nan]]),
        flag_values=[-1, 0, 1],
        flag_meanings="local between global",
    )
    bar = cells(head_map(split)).colorbar
    assert bar.ticktext == ("local", "between", "global")
    assert bar.tickvals == pytest.approx((-1, 0, 1))


def test_of_two_classes_the_first_is_gray():
    taken = heads(
        np.array([[0.0, 1.0]]), flag_values=[0, 1], flag_meanings="kept ablated"
    )
    (_, low), *_, (_, high) = cells(head_map(taken)).colorscale
    assert low[1:3] == "a3"
    assert high == theme.MARKS[1]


def test_a_name_is_shown_letter_by_letter():
    figure = head_map(heads(np.zeros((1, 1)), long_name="<b>mass</b>"))
    assert "&lt;b&gt;mass" in cells(figure).hovertemplate


@pytest.mark.parametrize(
    ("array", "error", "remedy"),
    [
        (np.zeros((2, 2)), InputError, "Pass one variable"),
        (
            xr.DataArray(np.zeros((2, 2, 3)), dims=("layer", "head", "query")),
            ShapeError,
            r"array\.mean\('query'\)",
        ),
        (xr.DataArray(np.zeros(3), dims="token"), ShapeError, "rename"),
        (xr.DataArray(np.zeros((0, 2)), dims=("layer", "head")), ShapeError, "holds"),
    ],
)
def test_other_axes_are_refused_with_a_remedy(array, error, remedy):
    with pytest.raises(error, match=remedy):
        head_map(array)


def test_channels_are_ordered_by_their_peak_and_keep_their_sign():
    axes = ("layer", "rank")
    value = xr.DataArray([[2.0, -1.0], [-900.0, 3.0]], dims=axes)
    channel = xr.DataArray([[7, 8], [8, 9]], dims=axes)
    figure = channel_map(value.assign_attrs(units="activation"), channel)
    assert list(cells(figure).y) == ["ch 8", "ch 9", "ch 7"]
    grid = cells(figure).z
    assert grid[0, 1] == pytest.approx(-np.log10(901))
    assert np.isnan(grid[2, 1])
    assert cells(figure).zmin == -cells(figure).zmax
    assert cells(figure).colorbar.title.text == "activation"


def test_channels_of_an_atlas_and_of_a_trace_are_drawn_alike():
    text = hand_atlas(4, 4, 2, tokens=60)["text_0"].to_dataset()
    drawn = channel_map(text.top_value, text.top_channel, text.top_token)
    traced = text.rename(layer="attention", layer_residual="layer")
    again = channel_map(traced.top_value, traced.top_channel, traced.top_token)
    assert np.array_equal(cells(drawn).z, cells(again).z, equal_nan=True)


@pytest.mark.parametrize("count", [1, 2, 9, 30, 64, 128])
def test_ticks_of_layers_are_whole_and_few(count):
    step = whole_ticks(count)["dtick"]
    assert isinstance(step, int)
    assert 1 <= -(-count // step) <= 9
