"""Figures and rows that the explorer adds: choosing cells, one head, two runs."""

import numpy as np
import pytest
import xarray as xr
from hand_atlas import hand_atlas
from hand_traces import site

from interp.errors import InputError, ShapeError
from interp.viz.differences import (
    difference,
    largest_changes,
    paired_distribution,
    paired_scatter,
)
from interp.viz.head_card import head_card
from interp.viz.maps import head_map
from interp.viz.profiles import profiles
from interp.viz.selectable import HERE, framed, selectable
from interp.viz.signals import (
    context,
    every_signal,
    examples,
    flagged,
    lookers,
    of_layer,
    strongest_tokens,
)


def heads(values, **attrs):
    values = np.asarray(values, dtype=float)
    coords = {"layer": range(values.shape[0]), "head": range(values.shape[1])}
    return xr.DataArray(values, coords, ("layer", "head"), attrs=attrs, name="score")


def node():
    """Two heads of one layer: one looks at key 0, the other at the token itself."""
    first, own = np.zeros((4, 4)), np.eye(4)
    first[:, 0] = 1
    found = site(np.array([[first, own]]), tokens=["a", "b", "c", "d"])
    keys = np.array([[[0, 0, 0, 0], [0, 1, 2, 3]]])
    dims = ("layer", "head", "query")
    return found.assign(max_key=(dims, keys), max_mass=(dims, np.ones((1, 2, 4))))


def test_every_cell_of_a_selectable_map_has_a_mark_at_its_layer_and_head():
    array = heads(np.arange(6).reshape(3, 2))
    marks = selectable(head_map(array), array).data[-1]
    assert list(zip(marks.x, marks.y, strict=True)) == [
        (layer, head) for layer in range(3) for head in range(2)
    ]
    assert marks.marker.opacity == 0
    assert marks.marker.color.tolist() == list(range(6))
    assert "%{marker.color" in marks.hovertemplate[0]


def test_chosen_heads_are_framed():
    frames = framed(head_map(heads([[1.0, 2.0]])), [(0, 1)]).data[-1]
    assert (frames.name, list(frames.x), list(frames.y)) == (HERE, [0], [1])


def test_profiles_have_a_panel_for_each_statistic_and_name_the_tokens():
    one = xr.DataArray([1.0, 2.0], dims="query", attrs={"units": "nats"})
    figure = profiles({"entropy": one, "distance": one}, ["<b>", "x"])
    assert len(figure.data) == 2
    assert figure.data[0].text[0] == "0: &lt;b&gt;"


def test_profiles_of_nothing_or_of_other_tokens_are_refused():
    with pytest.raises(InputError):
        profiles({}, [])
    with pytest.raises(InputError):
        profiles({"x": xr.DataArray([1.0], dims="query")}, ["a", "b"])


def test_a_difference_is_the_second_minus_the_first():
    change = difference(heads([[1.0, 2.0]]), heads([[4.0, 1.0]]))
    assert change.values.tolist() == [[3.0, -1.0]]
    assert [row["head"] for row in largest_changes(change)] == ["L0.H0", "L0.H1"]


def test_grids_that_differ_have_no_difference_but_a_picture():
    small, large = heads([[1.0]]), heads([[1.0, 2.0]])
    with pytest.raises(ShapeError, match=r"\(1, 1\) and \(1, 2\)"):
        difference(small, large)
    assert len(paired_distribution(small, large, ("a", "b")).data) == 2


def test_each_head_is_a_mark_of_the_scatter_unless_it_has_no_value():
    figure = paired_scatter(heads([[1.0, np.nan]]), heads([[2.0, 3.0]]), ("a", "b"))
    assert list(figure.data[1].x) == [1.0]
    assert figure.data[1].customdata.tolist() == [[0, 0]]


def test_a_head_card_tells_value_and_place_of_every_detector():
    atlas = hand_atlas(layers=3, heads=2, kv_heads=1, tokens=20)
    rows = {row["detector"]: row for row in head_card(atlas, 2, 1)}
    sinks = atlas["heads"]["sinks"].values
    place = int((sinks > sinks[2, 1]).sum()) + 1
    assert rows["sinks"]["place"] == f"{place} of 6"
    assert rows["global_head"]["value"] in ("local", "between", "global")


def test_a_text_can_be_colored_by_what_an_atlas_keeps_of_it():
    text = hand_atlas(layers=3, heads=2, kv_heads=1, tokens=20)["text_0"].to_dataset()
    signals = every_signal(text)
    assert {"received", "sink_share", "largest_activation"} <= signals.keys()
    largest = of_layer(signals["received"], None)
    assert largest.dims == ("token",)
    np.testing.assert_array_equal(
        of_layer(signals["received"], 1), text["received"].sel(layer=1)
    )


def test_flags_of_a_response_stand_at_its_end():
    rhythm = xr.Dataset({"preplan": ("token", [True, False])})
    found = flagged(rhythm, "preplan", 4).values
    np.testing.assert_array_equal(found, [np.nan, np.nan, 1, 0])


def test_lookers_are_the_queries_whose_largest_weight_is_on_the_token():
    assert [row["position"] for row in lookers(node(), 0, 0, 0)] == [0, 1, 2, 3]
    assert [row["position"] for row in lookers(node(), 0, 1, 2)] == [2]
    assert lookers(node(), 0, 0, 2) == []


def test_examples_come_with_what_the_head_looks_at():
    rows = examples(node(), node()["distance"], 0, 0, count=1)
    assert rows[0]["position"] == 3
    assert str(rows[0]["looks most at"]).startswith("0: ")


def test_the_strongest_tokens_leave_out_those_without_a_value():
    values = xr.DataArray([1.0, np.nan, 3.0], dims="token", name="x")
    found = strongest_tokens(values, ["a", "b", "c"])
    assert [row["position"] for row in found] == [2, 0]


def test_a_context_shows_controls_as_names():
    assert context(["a", "\n", "\u202e"], 1) == "a[\u21b5]\u2039RLO\u203a"
