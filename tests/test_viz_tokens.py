from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hand_atlas import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InputError, ShapeError
from interp.viz.tokens import (
    literal,
    pool,
    strip_style,
    token_map,
    token_strip,
    visible,
)


def series(values, **attrs):
    return xr.DataArray(values, dims="token", attrs={"units": "fraction"} | attrs)


class Spans(HTMLParser):
    def __init__(self):
        super().__init__()
        self.classes, self.texts, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "span":
            self.classes.append(dict(attrs)["class"])
            self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data


def traces(figure: Any) -> Any:
    return figure.data


def spans(html):
    parser = Spans()
    parser.feed(html)
    return parser


@given(st.text(max_size=80))
def test_a_visible_token_is_one_short_line_that_prints(token):
    shown = visible(token, 24)
    assert len(shown) <= 24
    assert not any(char in shown for char in "\n\r\t\x00\x1b\u202e\u2028\ufeff")
    shown.encode()


def test_what_hides_is_named():
    assert visible("\n") == "↵"
    assert "RLO" in visible("\u202eabc")
    assert "1B" in visible("\x1b[31m")
    assert visible("x" * 10_240).endswith("…")


def test_plotly_shows_a_token_letter_by_letter():
    assert literal("<b>&amp;") == "&lt;b&gt;&amp;amp;"


def test_a_strip_holds_each_token_once_and_no_tag_of_theirs():
    tokens = list(HOSTILE.values())
    html = token_strip(series(np.linspace(0, 1, len(tokens))), tokens, style=False)
    found = spans(html)
    assert found.tags <= {"div", "span", "br"}
    assert found.texts == [visible(token, 40) for token in tokens]


def test_larger_values_get_later_colors_and_unknown_ones_none():
    html = token_strip(series([0.0, 0.5, 1.0, np.nan]), list("abcd"), style=False)
    assert spans(html).classes == ["q0", "q6", "qb", "q-"]


def test_a_logarithmic_strip_spreads_small_values():
    values = series([1e-4, 1e-2, 1.0])
    html = token_strip(values, list("abc"), scale="log", span=(1e-4, 1.0), style=False)
    assert spans(html).classes == ["q0", "q6", "qb"]


def test_a_strip_alone_brings_its_style():
    assert strip_style() in token_strip(series([1.0]), ["a"])


def test_a_strip_shows_the_start_of_a_long_text():
    html = token_strip(series(np.ones(500)), ["a"] * 500, limit=40, style=False)
    assert len(spans(html).texts) == 40


def test_strings_and_values_must_agree():
    with pytest.raises(InputError, match="each of 3 values; got 2"):
        token_strip(series(np.ones(3)), ["a", "b"])
    with pytest.raises(InputError, match="each of 3 tokens; got 1"):
        token_map(xr.DataArray(np.ones((2, 3)), dims=("layer", "token")), ["a"])
    with pytest.raises(InputError, match="'cubic'"):
        token_strip(series([1.0]), ["a"], scale="cubic")
    with pytest.raises(ShapeError, match=r"\(token\)"):
        token_strip(xr.DataArray(np.ones((2, 3)), dims=("layer", "token")), list("abc"))


def test_pooling_never_loses_the_largest_value():
    values = np.random.default_rng(0).random((3, 127))
    starts = np.linspace(0, 127, 11).round().astype(int)
    pooled = pool(values, starts)
    assert pooled.shape == (3, 10)
    assert np.array_equal(pooled.max(axis=1), values.max(axis=1))


def test_pooling_ignores_what_is_unknown_and_keeps_what_is_unknown_throughout():
    values = np.array([[1.0, np.nan, np.nan, np.nan]])
    assert np.array_equal(pool(values, np.array([0, 2, 4])), [[1, np.nan]], True)


@pytest.mark.parametrize("count", [1, 7, 127, 601, 1999])
def test_a_map_of_any_text_stays_narrow_and_keeps_its_peak(count):
    values = xr.DataArray(
        np.zeros((2, count)), dims=("layer", "token"), attrs={"units": "fraction"}
    )
    values[1, count // 2] = 0.9
    figure = token_map(values, ["a"] * count)
    opening, whole = traces(figure)
    assert np.shape(opening.z) == (2, min(count, 12))
    assert np.shape(whole.z)[1] <= 600
    assert np.nanmax(whole.z) == np.float32(0.9)
    assert figure.layout.coloraxis.colorbar.title.text == "fraction"


def test_a_logarithmic_map_shows_the_value_itself_when_hovered():
    values = xr.DataArray([[0.001, 0.1]], dims=("layer", "token"))
    figure = token_map(values, ["a", "b"], scale="log")
    assert np.allclose(traces(figure)[0].customdata, [[0.001, 0.1]])
    assert np.nanmin(traces(figure)[0].z) == 0
