import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hand_atlas import HOSTILE, encoder_atlas, hand_atlas
from plotly.offline import get_plotlyjs

from interp.errors import InputError, StorageError
from interp.viz.atlas import detectors
from interp.viz.embed import safe_json, script_hash
from interp.viz.report import render, write

VOID = {"meta", "br", "input"}


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.scripts, self.ids = [], [], [], []
        self.text, self.links = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        if tag == "script":
            self.scripts.append((attrs.get("type"), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            kind, source = self.scripts[-1]
            self.scripts[-1] = kind, source + data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    @property
    def book(self):
        return json.loads(self.scripts_of("application/json")[-1])

    def scripts_of(self, kind):
        return [source for found, source in self.scripts if found == kind]

    def ids_of(self, name):
        return [attrs["id"] for _, attrs in self.tags if name in attrs.get("class", "")]


@pytest.fixture(scope="module")
def html():
    return render(hand_atlas(8, 4, 2, tokens=700, texts=2))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_tag_closes_and_every_id_is_unique(page):
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_tokens_become_text_and_never_tags(page, html):
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "b1", "iframe", "object"})
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert "<script>alert" not in html.replace(get_plotlyjs(), "")
    assert "alert(1)" in page.words
    assert "{{ 7*7 }}" in page.words


def test_only_our_two_scripts_run_and_the_policy_names_them(page):
    code = page.scripts_of(None)
    assert len(code) == 2
    assert code[0] == get_plotlyjs()
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert all(script_hash(source) in policy for source in code)


def test_plotly_is_there_once(html):
    assert html.count("plotly.js v") == get_plotlyjs().count("plotly.js v") == 1


def test_nothing_is_fetched_and_every_link_stays_on_the_page(page):
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_every_figure_has_its_data_and_a_description(page):
    figures = page.ids_of("figure ")
    assert set(figures) == set(page.book["figures"])
    described = [attrs for _, attrs in page.tags if attrs.get("role") == "img"]
    assert all(attrs["aria-label"] for attrs in described)


def test_both_templates_are_embedded_once_and_no_figure_brings_its_own(page):
    assert set(page.book["templates"]) == {"light", "dark"}
    for figure in page.book["figures"].values():
        assert not figure["layout"].get("template")
        assert not figure["layout"].get("title")


def test_every_figure_says_its_unit(page):
    units = ("fraction", "tokens", "nats", "activation", "local")
    for figure in page.book["figures"].values():
        assert any(unit in json.dumps(figure) for unit in units)


def test_every_detector_has_a_map_and_its_lines_of_python(page):
    names = detectors(hand_atlas(2, 2, 1, tokens=60))
    shown = [attrs.get("data-detector") for _, attrs in page.tags]
    assert set(names) <= set(shown)
    assert all(f'["{name}"]' in page.words for name in names)


def test_the_store_of_colors_matches_the_strip(page):
    colors = json.loads(page.scripts_of("application/json")[0])
    assert len(colors["classes"]) == 8
    assert {len(row) for row in colors["classes"]} == {400}


def test_a_page_of_the_default_models_size_is_light(tmp_path):
    atlas = hand_atlas(30, 9, 3, tokens=4600)
    assert write(atlas, tmp_path / "index.html").stat().st_size < 8_000_000


def test_the_same_atlas_gives_the_same_page(html):
    assert render(hand_atlas(8, 4, 2, tokens=700, texts=2)) == html


def test_an_encoder_says_what_is_absent_and_why():
    page = Page(render(encoder_atlas()))
    assert "an encoder's first token is seen by every key" in page.words
    assert "No residual stream was recorded. The atlas records no reason." in page.words


def test_an_empty_atlas_is_still_a_page():
    page = Page(render(xr.DataTree()))
    assert "No head was measured." in page.words
    assert "Nothing was skipped." in page.words
    assert page.book["figures"] == {}


@pytest.mark.parametrize(
    "lost", ["received", "sink_share", "top_value", "max", "massive", "attention_write"]
)
def test_any_variable_may_be_missing(lost):
    atlas = hand_atlas(4, 2, 1, tokens=60)
    text = atlas["text_0"].to_dataset().drop_vars(lost)
    atlas["text_0"] = xr.DataTree(text)
    assert Page(render(atlas)).open == []


def test_a_model_of_unknown_numbers_is_drawn_as_such():
    atlas = hand_atlas(4, 2, 1, tokens=60)
    for name in ("heads", "text_0"):
        data = atlas[name].to_dataset()
        floats = [v for v in data.data_vars if data[v].dtype.kind == "f"]
        atlas[name] = xr.DataTree(data.assign({v: data[v] * np.nan for v in floats}))
    page = Page(render(atlas))
    assert "No headline" in page.words
    assert "NaN" not in json.dumps(page.book)


def test_skipped_parts_are_listed_with_their_reason():
    atlas = hand_atlas(2, 2, 1, tokens=60)
    atlas.attrs["skipped"] = json.dumps([{"what": "fai", "why": "<i>too short</i>"}])
    words = Page(render(atlas)).words
    assert "fai <i>too short</i>" in words
    assert "Nothing was skipped" not in words


def writers_node(shares=(0.7, 0.2), interval="95% bootstrap over 2 texts"):
    said = {"units": "fraction", "interval": interval}
    said |= {"ratio": 1000.0, "floor": 100.0, "top": 4}
    rows = {
        "role": ["writer", "eraser"],
        "half": ["mlp", "attention"],
        "channel": [507, 507],
        "block": [11, 28],
        "neuron": [1229, -1],
        "n_texts": [2, 1],
        "peak": [2e4, 2e4],
        "written": [2e4, -1.5e4],
        "contribution": [1.6e4, np.nan],
        "weight": [5.88, np.nan],
        "weight_rank": [2.0, np.nan],
    }
    bounds = [[0.65, 0.75], [np.nan, np.nan]]
    return xr.Dataset(
        {
            "writers": ("writer", list(shares), said),
            "writers_interval": (("writer", "bound"), bounds),
        },
        coords={name: ("writer", values) for name, values in rows.items()},
    )


def test_writers_are_a_table_that_says_how_to_read_it():
    atlas = hand_atlas(4, 2, 1, tokens=60)
    atlas["writers"] = xr.DataTree(writers_node())
    page = Page(render(atlas))
    assert page.open == []
    assert "writer 11 1229 507 0.700 0.650" in page.words
    assert "eraser 28 attention 507" in page.words
    assert "Rank 1 is the largest weight" in page.words
    assert "95% bootstrap over 2 texts" in page.words


def test_writers_that_are_not_there_are_not_spoken_of_unless_asked_for():
    atlas = hand_atlas(2, 2, 1, tokens=60)
    assert "neurons that write" not in Page(render(atlas)).words
    atlas.attrs["skipped"] = json.dumps([{"what": "writers", "why": "too quiet"}])
    assert "No neuron is named. Reason: too quiet." in Page(render(atlas)).words


def test_attributes_that_are_no_json_do_no_harm():
    atlas = hand_atlas(2, 2, 1, tokens=60)
    atlas.attrs |= {"skipped": "not json", "versions": "[1]", "model": "</title><b>"}
    assert Page(render(atlas)).open == []


def test_a_command_given_replaces_the_recorded_one():
    atlas = hand_atlas(2, 2, 1, tokens=60)
    assert "make demo" in Page(render(atlas, command="make demo")).words
    assert "interp atlas smollm2-135m --text" in Page(render(atlas)).words


def test_a_folder_gets_an_index_and_nothing_else(tmp_path):
    path = write(hand_atlas(2, 2, 1, tokens=60), tmp_path)
    assert path == tmp_path / "index.html"
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="Choose a folder"):
        write(hand_atlas(2, 2, 1, tokens=60), blocked / "index.html")
    assert list(tmp_path.iterdir()) == [blocked]


def test_what_is_no_atlas_is_refused(tmp_path):
    other: Any = xr.Dataset()
    with pytest.raises(InputError, match="got Dataset"):
        write(other, tmp_path / "index.html")


@pytest.mark.parametrize("token", HOSTILE.values())
def test_no_string_leaves_its_script_element(token):
    text = safe_json({"token": token})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"token": token}


def test_a_text_without_sinks_says_so_instead_of_drawing_nothing():
    atlas = hand_atlas(2, 2, 1, tokens=60)
    atlas["text_0"]["sink_share"] = 0 * atlas["text_0"]["sink_share"]
    assert "Zero at every token of every layer." in Page(render(atlas)).words
