from typing import Any

import numpy as np
import pytest
import xarray as xr
from hand_atlas import hand_atlas

from interp.errors import InputError, ShapeError
from interp.viz.curves import head_distribution, head_scatter, magnitude_curve


@pytest.fixture(scope="module")
def atlas():
    return hand_atlas(8, 4, 2, tokens=60)


@pytest.fixture(scope="module")
def text(atlas):
    return atlas["text_0"].to_dataset()


@pytest.fixture(scope="module")
def heads(atlas):
    return atlas["heads"].to_dataset()


def traces(figure: Any) -> Any:
    return figure.data


def named(figure: Any, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def test_the_largest_stands_against_the_median_on_a_log_axis(text):
    figure = magnitude_curve(text.top_value, text.median_all, text.top_channel)
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.title.text == "magnitude (activation)"
    assert np.array_equal(named(figure, "largest").y, abs(text.top_value[:, 0]))
    assert np.array_equal(named(figure, "median").y, text.median_all)


def test_the_channel_of_the_peak_is_named(text):
    figure = magnitude_curve(text.top_value, text.median_all, text.top_channel)
    assert "ch 507" in [note.text for note in figure.layout.annotations]


def test_the_criterion_is_floor_and_ratio(text):
    line = named(
        magnitude_curve(text.top_value, text.median_all, floor=5.0, ratio=2.0),
        "massive above",
    )
    assert np.allclose(line.y, np.maximum(5.0, 2.0 * text.median_all))


def test_every_head_is_a_point_near_its_layer(heads):
    figure = head_distribution(heads.entropy)
    points = traces(figure)[-1]
    assert len(points.x) == np.isfinite(heads.entropy.values).sum()
    assert np.abs(points.x - np.round(points.x)).max() < 0.5
    assert figure.layout.yaxis.title.text == "entropy of the rows (nats)"


def test_the_middle_line_is_the_median_of_the_layer(heads):
    line = named(head_distribution(heads.distance), "median head")
    assert np.allclose(line.y, heads.distance.median("head"))


def test_a_layer_without_any_head_leaves_a_gap(heads):
    values = heads.distance.copy()
    values[2] = np.nan
    assert np.isnan(named(head_distribution(values), "median head").y[2])


def test_axes_are_logarithmic_only_where_values_span_far():
    near = xr.DataArray([[1.0, 2.0]], dims=("layer", "head"))
    far = xr.DataArray([[1.0, 2000.0]], dims=("layer", "head"))
    assert head_distribution(near).layout.yaxis.type is None
    assert head_distribution(far).layout.yaxis.type == "log"


def test_classes_become_color_and_symbol(heads):
    figure = head_distribution(heads.distance, heads.global_head)
    points = {trace.name: trace for trace in traces(figure)[3:]}
    assert set(points) == {"local", "between", "global"}
    assert len({trace.marker.symbol for trace in points.values()}) == 3
    assert len(points["global"].x) == (heads.global_head.values == 1).sum()


def test_two_quantities_are_drawn_head_against_head(heads):
    figure = head_scatter(heads.distance, heads.sinks)
    assert np.allclose(traces(figure)[0].x, heads.distance.values.ravel())
    assert np.allclose(traces(figure)[0].y, heads.sinks.values.ravel())
    assert figure.layout.xaxis.title.text == "mean attention distance (tokens)"


def test_other_axes_are_refused(text):
    with pytest.raises(ShapeError, match="magnitude_curve needs axes"):
        magnitude_curve(text.top_value, text.received)
    with pytest.raises(InputError, match="magnitude_curve draws"):
        magnitude_curve(text.top_value.values, text.median_all)
