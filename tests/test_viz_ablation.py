"""The page of an ablation."""

from typing import Any

import pytest
import xarray as xr
from hand_ablation import HARM, hand_ablation
from plotly.offline import get_plotlyjs
from test_viz_report import Page

from interp.errors import InputError, StorageError
from interp.viz.ablation import render, write
from interp.viz.embed import script_hash


@pytest.fixture(scope="module")
def tree():
    return hand_ablation()


@pytest.fixture(scope="module")
def html(tree):
    return render(tree)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def well_formed(page):
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    figures = page.ids_of("figure ")
    assert set(figures) == set(page.book["figures"])
    return True


def test_the_page_is_whole_and_fetches_nothing(page):
    assert well_formed(page)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_only_our_two_scripts_run_and_the_policy_names_them(page):
    code = page.scripts_of(None)
    assert code[0] == get_plotlyjs()
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert all(script_hash(source) in policy for source in code)


def test_findings_come_first_as_sentences(page):
    words = page.words
    assert "nll, zero: 3.00 → 3.50" in words
    assert "negative log-likelihood per token changes by +0.500" in words
    assert "passkey, mean: 1.00 → 0.100" in words
    assert "3 random controls change it by 0 on average, from 0 to 0; none as" in words
    assert words.index("passkey, mean: 1.00") < words.index("Asked before")


def test_few_items_that_all_change_say_what_they_cannot_show(page):
    assert "All items change alike; so few allow no p below 0.031" in page.words


def test_what_was_asked_before_stands_apart_from_what_was_looked_at(page):
    before, after = page.words.split("Looked at afterwards", 1)
    for word in ("L0.H1 L1.H2", "highest induction", "set to zero", "exact answers"):
        assert word in before
    assert "KL divergence from the untouched model" in after.split("corrected among")[0]
    rows = [a.get("class", "") for tag, a in page.tags if tag == "tr"]
    assert rows.count("asked-before") == rows.count("after") == 4


def test_every_task_has_its_figure_and_items_by_length_and_depth(page):
    described = [a["aria-label"] for _, a in page.tags if a.get("role") == "img"]
    assert sum("with its interval" in each for each in described) == 2
    assert any("by length and depth" in each for each in described)
    assert any("each item's negative log-likelihood" in each for each in described)


def test_the_heads_are_shown_on_their_grid(page):
    shown = [attrs.get("data-detector") for _, attrs in page.tags]
    assert {"ablated", "drawn", "induction"} <= set(shown)


def test_a_task_that_the_model_cannot_do_is_not_interpreted():
    page = Page(render(hand_ablation(can=False)))
    words = page.words
    assert well_formed(page)
    assert "passkey: not interpreted" in words
    assert "not surely better than a guess (0)" in words
    assert "nll, zero: 3.00" in words
    assert "passkey, zero:" not in words
    refused = [a.get("id") for _, a in page.tags if "refused" in a.get("class", "")]
    assert "task_1" in refused
    assert "task_0" not in refused


def test_without_controls_the_page_warns():
    words = Page(render(hand_ablation(n_controls=0))).words
    assert "No random controls were drawn: whether other heads" in words
    assert "no random controls" in words


def test_one_item_has_no_interval_and_no_grid_of_them():
    page = Page(render(hand_ablation(n_items=1)))
    assert well_formed(page)
    assert "no interval: one item" in page.words


def test_hostile_names_become_text(tree):
    hostile = hand_ablation(name=HARM)
    hostile.attrs |= {"model": HARM, "chosen": HARM, "command": HARM}
    page = Page(render(hostile))
    assert well_formed(page)
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert "img" not in {tag for tag, _ in page.tags}
    assert "too <i>few</i>" in page.words


def test_the_same_ablation_gives_the_same_page(tree, html):
    assert render(tree) == html


def test_a_page_is_written_whole_or_not_at_all(tree, tmp_path):
    assert write(tree, tmp_path) == tmp_path / "index.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Choose a folder"):
        write(tree, tmp_path / "file" / "index.html")


@pytest.mark.parametrize("other", [xr.Dataset(), xr.DataTree(), None])
def test_what_is_no_ablation_is_refused(other: Any):
    with pytest.raises(InputError, match="written from an ablation"):
        render(other)
