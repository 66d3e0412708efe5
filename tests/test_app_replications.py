"""`interp report` on claims: what it writes, what it refuses, and how it goes on."""

import json

import pandas as pd
import pytest
from command_line import made, refused, save

from interp.probes.replications.head_kinds import InductionAndEcho

SMALL = """
title = "Small"
model = "llama"

[[claim]]
claim = "induction_and_echo"
n_seeds = 2
block = 8

[[claim]]
claim = "few_retrieval_heads"
lengths = [100000]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replications")
    save(folder, "llama")
    (folder / "claims.toml").write_text(SMALL)
    made("report", folder / "claims.toml", "--out", folder / "results")
    return folder


def test_page_table_and_record_are_written(root):
    results = root / "results"
    page = (results / "replications.md").read_text("utf-8")
    assert page.startswith("# Small\n")
    assert "interp report" in page
    table = pd.read_csv(results / "replications.csv")
    assert list(table["claim"]) == ["induction_and_echo"] * 4 + ["few_retrieval_heads"]
    assert table["unit"].notna().sum() == table["low"].notna().sum() == 4
    record = json.loads((results / "run.json").read_text("utf-8"))
    assert record["finished"]


def test_what_a_model_cannot_do_is_said_in_its_row(root):
    page = (root / "results" / "replications.md").read_text("utf-8")
    assert "## Few retrieval heads: cannot be tested here" in page
    assert "Not measured: " in page


def test_again_only_what_is_missing_is_measured(root, monkeypatch):
    results = root / "results"
    before = (results / "replications.csv").read_bytes()
    (results / "claims" / "few_retrieval_heads.json").unlink()
    monkeypatch.setattr(
        InductionAndEcho, "measure", lambda *_, **__: pytest.fail("ran")
    )
    made("report", root / "claims.toml", "--out", results)
    assert (results / "replications.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('claim = ["sinks"]', "claim is no table"),
        ('[[claim]]\nclaim = "later_sinks"', "names no model"),
        ('model = "llama"\nclaim = []', "holds no claim"),
        ('model = "llama"\n[[claim]]\nclaim = "x"', "there is none"),
        ('model = "llama"\ncolour = 1\nclaim = []', "line 2: colour is no key"),
        (2 * '[[claim]]\nclaim = "later_sinks"\nmodel = "a"\n', "twice"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, text, says):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    assert says in refused("report", path, "--out", tmp_path / "out")
