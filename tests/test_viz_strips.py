"""The text itself, colored by any signal that its tokens have."""

import json

import numpy as np
import pytest
import xarray as xr
from hand_atlas import HOSTILE, hand_atlas
from test_viz_report import Page

from interp.viz.atlas import token_signals
from interp.viz.report import render
from interp.viz.strips import color_scale, color_span, colored_text

LAYERS, HEADS, TOKENS = 4, 3, 60
MINUS = "\N{MINUS SIGN}"


def atlas(tokens=TOKENS, **signals):
    """A small atlas, and more signals in its text as (dims, values, attrs)."""
    made = hand_atlas(LAYERS, HEADS, 1, tokens=tokens)
    made["text_0"] = xr.DataTree(made["text_0"].to_dataset().assign(signals))
    return made


def signal(dims, seed=0, tokens=TOKENS, **attrs):
    sizes = {"layer": LAYERS, "head": HEADS}
    shape = [sizes.get(dim, tokens) for dim in dims]
    values = np.random.default_rng(seed).normal(size=shape)
    return dims, values, {"units": "tokens", "long_name": "clipped distance"} | attrs


def text(**signals):
    return atlas(**signals)["text_0"].to_dataset()


def stored(page):
    return json.loads(page.scripts_of("application/json")[0])


@pytest.mark.parametrize("token", ["token", "key", "query"])
def test_signals_may_tell_heads_apart_and_call_tokens_keys_or_queries(token):
    of_heads, mean = signal(("layer", "head", token)), signal((token, "layer"))
    found = token_signals(text(of_heads=of_heads, mean=mean))
    assert list(found) == ["received", "of_heads", "mean"]
    assert {array.dims for array in found.values()} == {("layer", "token")}
    np.testing.assert_allclose(found["of_heads"], of_heads[1].mean(1))
    np.testing.assert_array_equal(found["mean"], mean[1].T)
    assert found["of_heads"].attrs["long_name"] == "clipped distance, mean over heads"


def test_what_colors_no_token_of_the_text_is_left_out():
    found = token_signals(
        text(
            unknown=(("layer", "token"), np.full((LAYERS, TOKENS), np.nan)),
            index=(("layer", "token"), np.zeros((LAYERS, TOKENS), dtype=int)),
            other_text=(("layer", "key"), np.zeros((LAYERS, TOKENS + 1))),
            of_stream=(("layer_residual", "token"), np.ones((LAYERS + 1, TOKENS))),
            map=(("layer", "query", "key"), np.zeros((LAYERS, 5, TOKENS + 1))),
        )
    )
    assert list(found) == ["received"]


@pytest.mark.parametrize("received", [True, False])
def test_a_signal_may_have_one_value_a_token(received):
    made = text(waad=signal(("query",)), other=signal(("layer", "token")))
    strip = colored_text(made if received else made.drop_vars("received"), 400)
    assert strip is not None
    waad = strip["colors"]["others"]["waad"] if received else strip
    assert waad["classes"] == []
    assert waad["title"] == "clipped distance"
    assert waad["largest"][made["waad"].values.argmax()] == "b"
    assert strip["layers"] == list(range(LAYERS))


def test_a_text_without_further_signals_looks_as_it_did():
    page = Page(render(atlas()))
    assert not [tag for tag, _ in page.tags if tag == "select"]
    assert set(stored(page)) == {"layers", "classes", "others"}
    assert stored(page)["others"] == {}
    assert "is a line break" not in page.words


def test_a_selector_offers_every_signal_by_its_title():
    page = Page(render(atlas(waad=signal(("layer", "query")))))
    values = [attrs["value"] for tag, attrs in page.tags if tag == "option"]
    assert values == ["", "waad"]
    assert "clipped distance" in page.words
    other = stored(page)["others"]["waad"]
    assert [len(row) for row in other["classes"]] == [TOKENS] * LAYERS
    assert len(other["largest"]) == len(other["values"]) == TOKENS
    assert other["unit"] == "tokens"


def test_colors_and_values_are_those_of_the_signal():
    data = text(waad=signal(("layer", "token")))
    strip = colored_text(data, 400)
    assert strip is not None
    other = strip["colors"]["others"]["waad"]
    values = data["waad"].values
    row, place = np.unravel_index(values.argmax(), values.shape)
    assert other["classes"][row][place] == other["largest"][place] == "b"
    row, place = np.unravel_index(values.argmin(), values.shape)
    assert other["classes"][row][place] == "0"
    assert other["values"][place].removesuffix(" tokens").replace(MINUS, "-") == (
        f"{values[:, place].max():.3f}"
    )


def test_the_first_signal_stands_in_where_nothing_is_received():
    data = text(waad=signal(("layer", "token"))).drop_vars("received")
    strip = colored_text(data, 400)
    assert strip is not None
    assert strip["title"] == "clipped distance"
    assert strip["choices"] == []
    assert colored_text(data.drop_vars("waad"), 400) is None


def test_a_long_text_is_colored_at_its_start_only():
    data = atlas(500, waad=signal(("layer", "token"), tokens=500))["text_0"]
    strip = colored_text(data.to_dataset(), 400)
    assert strip is not None
    assert strip["shown"] == 400
    assert {len(row) for row in strip["colors"]["others"]["waad"]["classes"]} == {400}


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.0, 1.0, 2.0], "linear"),
        ([0.001, 0.01, 1.0], "log"),
        ([-0.001, 0.01, 1.0], "linear"),
        ([0.0, 0.0], "linear"),
        ([np.nan], "linear"),
    ],
)
def test_colors_are_logarithmic_where_positive_values_span_far(values, scale):
    assert color_scale(xr.DataArray(values, dims="token")) == scale


def test_linear_colors_reach_from_the_smallest_to_the_largest():
    assert color_span(xr.DataArray([-2.0, np.nan, 3.0]), "linear") == (-2, 3)
    assert color_span(xr.DataArray([4.0, 4.0]), "linear") == (4, 5)


def test_hostile_names_and_tokens_stay_text():
    name, title = '"><b1>', "</script><b1>{{ 7*7 }}"
    more = {name: signal(("layer", "token"), long_name=title, units=title)}
    page = Page(render(atlas(**more)))
    assert page.open == []
    assert "b1" not in {tag for tag, _ in page.tags}
    assert stored(page)["others"][name]["unit"] == title
    assert title in page.words
    assert HOSTILE[5] in page.words


def test_a_page_with_many_signals_is_light():
    layers, tokens = 30, 4600
    made = hand_atlas(layers, 9, 3, tokens=tokens)
    rng = np.random.default_rng(0)
    more = {
        f"signal_{i}": (("layer", "token"), rng.random((layers, tokens)))
        for i in range(10)
    }
    made["text_0"] = xr.DataTree(made["text_0"].to_dataset().assign(more))
    assert len(render(made).encode()) < 8_000_000
