import json
from dataclasses import dataclass

import numpy as np
import pytest
import xarray as xr
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.errors import InputError, NotCapturedError
from interp.probes import EXPERIMENTS, Experiment, detect
from interp.probes.atlas import atlas, to_table

TEXT = "w5 w9 w33 w7 w61 w12 w80 w9 w5 w9"


@dataclass(frozen=True)
class Counted(Experiment):
    """The head's number, in three runs."""

    fails: bool = False

    name = "counted"
    unit = "heads"
    long_name = "number of the head"
    description = "What place the head has in its layer."

    def run(self, model, *, folder=None, bootstrap=None, progress=None):
        """Counts."""
        if self.fails:
            raise InputError("The model cannot count.")
        heads = np.tile(np.arange(4.0), (3, 2, 1))
        runs = xr.DataArray(heads, dims=("counted_run", "layer", "head"))
        runs = runs.assign_coords(kv_head=("head", [0, 0, 1, 1]))
        return xr.Dataset(
            {
                "counted": self.labelled(runs.mean("counted_run")),
                "counted_interval": bootstrap.interval(runs, "counted_run"),
                "counted_runs": runs,
            }
        )


@pytest.fixture(scope="module")
def model():
    return interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())


def test_an_experiment_stands_in_an_atlas_beside_detectors(model):
    tree = atlas(model, TEXT, detectors=["sinks", Counted()])
    heads = tree["heads"].to_dataset()

    assert heads["counted"].attrs["units"] == "heads"
    assert "3 runs" in heads["counted"].attrs["interval"]
    assert "Counted(fails=False).run(model)" in heads["counted"].attrs["python"]
    assert "counted: " in tree.attrs["intervals"]
    table = to_table(tree)
    assert list(table["counted"]) == [0, 1, 2, 3] * 2
    assert list(table["counted_low"]) == [0, 1, 2, 3] * 2
    assert table["sinks"].notnull().all()


def test_what_a_model_cannot_answer_is_named_and_the_rest_goes_on(model):
    tree = atlas(model, TEXT, detectors=[Counted(fails=True), "sinks"])

    assert "counted" not in tree["heads"]
    assert "sinks" in tree["heads"]
    [entry] = json.loads(tree.attrs["skipped"])
    assert entry == {"what": "counted", "why": "The model cannot count."}


def test_detect_takes_a_model_where_a_trace_will_not_do(model):
    trace = interp.trace(model, TEXT)
    with pytest.raises(NotCapturedError, match="Pass the model"):
        detect(trace, [Counted()])
    heads = detect(model, [Counted(), "sinks"], texts=TEXT)

    own = detect(trace, "sinks")["sinks"]
    np.testing.assert_allclose(heads["sinks"].values, own.values)
    assert json.loads(heads.attrs["skipped"]) == []


def test_a_trace_feeds_its_detectors_and_no_experiment(model):
    found = detect(interp.trace(model, TEXT))
    skipped = {each["what"] for each in json.loads(found.attrs["skipped"])}

    assert not set(EXPERIMENTS) & set(found)
    assert {n for n, kind in EXPERIMENTS.items() if kind.by_default} <= skipped
