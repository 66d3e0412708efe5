"""The page of a study."""

from dataclasses import replace

import pytest
from hand_ablation import HARM, hand_ablation
from test_viz_ablation import well_formed
from test_viz_report import Page

from interp.viz import study
from interp.viz.study import Part


@pytest.fixture(scope="module")
def parts():
    tree = hand_ablation()
    done = Part("a/b", "induction", "a b/induction", tree)
    other = replace(done, heads="sinks", folder="a b/sinks")
    few = hand_ablation(n_controls=0, modes=("zero",))
    cannot = hand_ablation(can=False)
    return [
        done,
        replace(other, tree=few),
        replace(done, model="weak", folder="weak/induction", tree=cannot),
        Part(HARM, "induction", "x", None, "it was not there"),
        Part(HARM, "sinks", "x", None, "it was not there"),
    ]


@pytest.fixture(scope="module")
def page(parts):
    return Page(study.render("Which <heads>?", parts, command="interp report s.toml"))


def test_ablations_are_compared_and_linked(page):
    assert well_formed(page)
    assert "a%20b/induction/index.html" in page.links
    assert "A study of 5 ablations Which <heads>?" in page.words
    assert len(page.book["figures"]) == 2
    assert "a/b, sinks, zero" in page.words


def test_findings_count_what_surely_changed(page):
    assert "passkey: 0 of 3" in page.words
    assert "Left out: 2 ablations where the untouched model" in page.words


def test_what_failed_is_said_once(page):
    assert page.words.count("it was not there") == 1


def test_of_nothing_a_page_remains(parts):
    page = Page(study.render("None", parts[3:]))
    assert well_formed(page)
    assert "None was finished." in page.words


def test_a_task_that_no_model_can_do(parts):
    page = Page(study.render("None", [parts[2]]))
    assert "passkey: not interpreted" in page.words
