"""Retrieval heads of the default model, in the ranges that its reference run gave."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from command_line import made

import interp
from interp.heads import HeadId, HeadSet
from interp.probes import detect
from interp.probes.contexts import activity, universality
from interp.probes.retrieval import RetrievalHeads

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def model():
    return interp.load("smollm2-135m")


@pytest.fixture(scope="module")
def found(model):
    return RetrievalHeads().run(model)


def test_few_heads_retrieve_and_the_strongest_are_known(found):
    scores = found["retrieval"]

    assert found.attrs["n_accepted"] >= 9
    assert 0.03 <= found.attrs["share_above"] <= 0.10
    assert scores.max() > 0.6
    strongest = list(HeadSet.top(scores, k=5))
    assert strongest[0] == HeadId(18, 6)
    assert {HeadId(17, 3), HeadId(23, 2), HeadId(18, 7)} <= set(strongest)
    assert float((scores.max("head") > 0.1).argmax("layer")) >= 3  # none at the input


def test_they_are_the_induction_heads_and_not_the_echo_heads(model, found):
    names = ["induction", "echo"]
    others = detect(model, names, seeds=(0,), block=96, texts="A text.")
    scores = found["retrieval"].values.ravel()
    alike = {n: np.corrcoef(scores, others[n].values.ravel())[0, 1] for n in names}

    assert alike["induction"] > 0.8
    assert abs(alike["echo"]) < 0.15


def test_the_same_heads_retrieve_every_needle(found):
    parts = universality(found["retrieval_runs"])
    kinds = activity(found["retrieval_runs"])["kind"]

    assert parts["correlation"].min() > 0.8
    assert parts["in_all"].sel(layer=18, head=6)
    assert kinds.sel(layer=18, head=6) == "strong"
    assert (kinds == "dynamic").any()


def test_without_them_passkeys_in_another_text_are_not_found(
    found, tmp_path, monkeypatch
):
    # What the command would measure first has been measured above.
    monkeypatch.setattr(RetrievalHeads, "run", lambda *_, **__: found)
    out = tmp_path / "out"
    passkeys = '{task = "passkey", lengths = [100], depths = [0.3, 0.7]}'
    options = ["--top", "retrieval:5%", "--task", passkeys, "--out", out]
    made("ablate", "smollm2-135m", *options)

    record = json.loads((out / "run.json").read_text("utf-8"))
    assert len(record["heads"].split(",")) == 14
    assert len(record["chosen_on"]["haystacks"]) == 1
    assert record["chosen_on"]["read_again_by"] == []
    page = (out / "index.html").read_text("utf-8")
    assert "highest retrieval, in other haystacks than the tasks read" in page
    with xr.open_datatree(
        out / "effects.zarr", engine="zarr", consolidated=False
    ) as tree:
        assert tree["heads"]["retrieval"].max() > 0.6
    table = pd.read_csv(out / "ablation.csv").set_index(["metric"])
    exact = table.loc["exact"]
    assert exact["base"] >= 0.8
    assert exact["score"] <= 0.5 * exact["base"]
    assert exact["control_mean"] - exact["effect"] >= 0.4
    assert exact["p_control"] < 0.05


def test_an_eager_model_s_weights_give_the_same_scores():
    options = ["--tokens", 120, "--depths", 1, "--threads", 1]
    table = made("bench", "retrieval", "--routes", "switched,interp", *options)

    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    assert [float(row[-2]) for row in rows[1:]] == [0, 0]
