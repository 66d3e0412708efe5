"""The page of a rhythm."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hand_rhythm import HARM, hand_rhythm
from test_viz_ablation import well_formed
from test_viz_report import Page

from interp.errors import InputError, StorageError
from interp.viz.embed import script_hash
from interp.viz.numbers import percent
from interp.viz.rhythm import render, write
from interp.viz.rhythm_curves import lift_plot, null_range, rhythm_curves, rows_of


@pytest.fixture(scope="module")
def found():
    return hand_rhythm()


@pytest.fixture(scope="module")
def html(found):
    return render(found)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_is_whole_and_fetches_nothing(page):
    assert well_formed(page)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_only_our_two_scripts_run_and_the_policy_names_them(page):
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert all(script_hash(source) in policy for source in page.scripts_of(None))


def test_the_text_wears_its_preplan_and_anchor_tokens(page, found):
    marks = [attrs.get("data-marks", "") for tag, attrs in page.tags if tag == "span"]
    for name, array in (
        ("preplan", found["preplan"]),
        ("anchor", found["anchor"][:, 0]),
    ):
        shown = sum(name in each.split() for each in marks)
        assert shown == int(array.sum()), name
    assert "preplan token" in page.words


def test_the_text_can_be_coloured_by_every_curve_and_credit(page):
    choices = [attrs["value"] for tag, attrs in page.tags if tag == "option"]
    wanted = {"", "fai 2-end", "fai 0-end", "delta", "entropy"}
    wanted |= {f"credit_{kind}" for kind in ("local", "global", "coupled")}
    assert set(choices) == wanted
    words = page.words
    assert "asked t" in words
    assert "4 tokens of prompt, 20 tokens of response" in words
    assert "4 tokens of prompt, 16 tokens of response" in words


def test_coupling_stands_beside_chance(page, found):
    words = page.words
    for name, row in rows_of(found):
        assert name in words
        observed = found["mean_observed"].sel(row).item()
        if row["link"] != "entropy":
            assert percent(observed).replace("\N{NO-BREAK SPACE}", " ") in words
    names = [name for name, _ in rows_of(found)]
    assert names[0] == "entropy at WAAD peaks"
    assert len(names) == 1 + 2 * 2


def test_chance_is_the_middle_of_its_draws(found):
    row = {"link": "follows", "horizon": "0-end"}
    low, high = null_range(found, row)
    drawn = found["drawn"].sel(row).mean("chain") / found["mean_expected"].sel(row) - 1
    assert (low, high) == tuple(np.quantile(drawn, [0.025, 0.975]))

    figure = lift_plot(found)
    chance, observed = figure.data
    half = np.array(chance.error_x.array)
    assert len(observed.x) == len(half) == 5
    place = [name for name, _ in rows_of(found)].index(
        "FAI peaks at or after a WAAD peak, 0-end"
    )
    assert chance.x[place] - half[place] == pytest.approx(low)
    assert observed.x[place] == found["mean_lift"].sel(row).item()


def test_a_curve_has_its_marks_where_the_tokens_are(found):
    chain = found.isel(chain=1, token=slice(16))
    lines = {line.name: line for line in rhythm_curves(chain).data}

    np.testing.assert_allclose(lines["WAAD"].y, chain["waad"], rtol=1e-6)
    np.testing.assert_allclose(lines["FAI 0-end"].y, chain["fai"][1], rtol=1e-6)
    assert lines["FAI 0-end"].visible == "legendonly"
    for name, array in (
        ("preplan tokens", chain["preplan"]),
        ("anchor tokens", chain["anchor"][0]),
        ("WAAD peaks", chain["waad_peak"]),
        ("FAI peaks", chain["fai_peak"][0]),
    ):
        assert lines[name].x.tolist() == np.flatnonzero(array).tolist(), name


def test_one_text_has_no_interval_and_says_so():
    page = Page(render(hand_rhythm(1)))
    assert well_formed(page)
    assert "One text has no interval" in page.words


def test_without_entropy_a_page_has_what_is_left(found):
    less = found.drop_vars(["entropy", "prompt_text", "credit_local"])
    page = Page(render(less))
    assert well_formed(page)
    choices = [attrs["value"] for tag, attrs in page.tags if tag == "option"]
    assert "entropy" not in choices


def test_hostile_tokens_and_names_become_text():
    hostile = hand_rhythm(name=HARM, word=HARM)
    page = Page(render(hostile.assign_attrs(model=HARM, command=HARM)))
    assert well_formed(page)
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert "img" not in {tag for tag, _ in page.tags}
    assert "too <i>short</i>" in page.words


def test_the_same_rhythm_gives_the_same_page(found, html):
    assert render(found) == html


def test_a_page_is_written_whole_or_not_at_all(found, tmp_path):
    assert write(found, tmp_path) == tmp_path / "index.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Choose a folder"):
        write(found, tmp_path / "file" / "index.html")


@pytest.mark.parametrize("other", [xr.Dataset(), xr.DataTree(), None])
def test_what_is_no_rhythm_is_refused(other: Any):
    with pytest.raises(InputError, match="written from a rhythm"):
        render(other)


def test_figures_refuse_what_is_no_rhythm():
    with pytest.raises(InputError, match="with waad, fai"):
        rhythm_curves(xr.Dataset())
    with pytest.raises(InputError, match="with mean_lift"):
        lift_plot(xr.Dataset())
