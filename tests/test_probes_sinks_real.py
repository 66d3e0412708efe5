"""Sinks and massive activations of a trained model, within the published ranges."""

import numpy as np
import pytest

import interp
from interp.capture import Capture
from interp.kernels.definitions import Norms, Received
from interp.probes.activations import LOOSE_RATIO, MassiveActivations, massive_cells
from interp.probes.constancy import input_independence
from interp.probes.input_controls import sink_controls
from interp.probes.single_weights import TOGETHER, super_weights
from interp.probes.sink_tokens import IntermediateSinks, sink_depth, sink_norms
from interp.probes.sinks import ACT_MULTIPLE, SinkTokens, are_sinks
from interp.probes.writing import candidates, writers
from interp.tasks.reading import shipped
from interp.tasks.texts import Texts

pytestmark = [pytest.mark.real, pytest.mark.slow]

CHANNEL = 507
SUPER = ((11, CHANNEL, 1229), (11, CHANNEL, 1487))


@pytest.fixture(scope="module")
def model():
    return interp.load("smollm2-135m")


@pytest.fixture(scope="module")
def trace(model):
    capture = Capture((Received(), Norms()), edges=None, residual=True)
    return interp.trace(model, shipped(), capture=capture, max_tokens=230)


@pytest.fixture(scope="module")
def controls(model):
    found = sink_controls(model, n_sequences=4)
    return found["sink_metric"], found


@pytest.fixture(scope="module")
def written(model):
    criterion = MassiveActivations(ratio=LOOSE_RATIO)
    return writers(model, shipped(), criterion=criterion, max_tokens=64, top=2)


def neurons(written, role, token, block):
    rows = written[written["channel"] == CHANNEL]
    rows = rows[(rows["role"] == role) & (rows["token"] == token)]
    return rows[rows["block"] == block].set_index("neuron")


def test_sinks_need_neither_meaning_nor_a_special_token(controls):
    metric, _ = controls

    assert (metric.sel(kind=["natural", "random"]) > 55).all()


def test_a_repeated_token_has_no_sink_until_another_one_stands_in_front(controls):
    metric, found = controls

    assert metric.sel(kind="repeated", bos=False) < 2
    assert metric.sel(kind="repeated", bos=True) > 10
    assert found["bos_effect_interval"].sel(kind="repeated", bound="low") > 0


def test_both_thresholds_of_act_find_the_first_token(trace):
    fixed, relative = (
        are_sinks(trace, 0.1).sel(key=0),
        are_sinks(trace, ACT_MULTIPLE, relative=True).sel(key=0),
    )

    assert 0.75 < fixed.mean() < 0.95
    assert fixed.mean() < relative.mean() < 0.97


def test_the_later_sinks_of_most_heads_are_articles(trace):
    cells = SinkTokens(epsilon=0.1).cells(trace)
    by_token = cells[cells["key"] > 0].value_counts(["key", "key_token"])

    assert [word for _, word in by_token.index[:3]] == [" the"] * 3
    assert 20 < by_token.iloc[0] < 120


def test_first_token_sinks_pause_between_the_two_stages(trace):
    first = sink_depth(trace)["first"]

    assert (first.sel(layer=slice(3, 9)) == 1).all()
    assert (first.sel(layer=[0, 1, 11]) < 0.2).all()
    assert (first.sel(layer=slice(12, 29)) > 0.7).all()


def test_states_of_the_first_stage_are_like_the_first_tokens(trace):
    cosine = trace["residual"]["cosine"].sel(token=slice(1, None))
    text = trace["residual"]["token_text"].sel(token=slice(1, None)).values
    third = cosine.sel(layer=3).values

    assert (third >= 0.98).sum() >= 3
    assert set(text[third >= 0.98]) == {" the"}
    assert 0.4 < third.mean() < 0.65
    assert cosine.sel(layer=slice(12, 28)).max() < 0.8


def test_intermediate_sinks_are_articles_of_the_first_stage(trace):
    table = IntermediateSinks().table(trace)

    assert set(table["token_text"]) == {" the"}
    assert set(range(3, 9)) <= set(table["layer_residual"]) <= set(range(2, 11))


def test_values_of_the_first_token_are_short(trace):
    ratios = sink_norms(trace)["value_norm_ratio"].mean("head")

    assert (ratios.sel(layer=slice(3, 9)) < 0.4).all()
    assert (ratios.sel(layer=slice(12, 28)) < 0.5).all()
    assert (ratios.sel(layer=[0, 1]) > 0.8).all()


def test_one_cell_is_massive_in_the_second_stage_and_none_before(trace):
    cells = massive_cells(trace)
    stage = cells[cells["layer"].between(13, 28)]

    assert set(cells["layer"]) == set(range(12, 29))
    assert set(stage["token"]) == {0}
    assert (stage.groupby("layer").size() <= 3).all()
    assert (stage[stage["channel"] == CHANNEL].groupby("layer").size() == 1).all()
    loose = massive_cells(trace, MassiveActivations(ratio=LOOSE_RATIO))
    early = loose[loose["layer"] == 3]
    assert len(set(early[early["channel"] == CHANNEL]["token"])) > 3


def test_two_neurons_of_block_11_write_the_massive_activation(written):
    rows = neurons(written, "writer", 0, 11)

    assert list(rows.index) == [1229, 1487]
    assert rows["share"].tolist() == pytest.approx([0.73, 0.26], abs=0.1)
    assert abs(rows["weight"]).tolist() == pytest.approx([5.9, 6.1], abs=0.2)
    assert sorted(rows["weight_rank"]) == [1, 2]
    assert 0.9 < rows["share"].sum() <= 1.01


def test_two_neurons_of_block_2_write_the_first_stage(written):
    assert set(neurons(written, "writer", 0, 2).index) == {90, 430}
    assert (neurons(written, "writer", 0, 2)["weight_rank"] <= 2).all()


def test_neuron_678_of_block_28_erases_it(written):
    rows = neurons(written, "eraser", 0, 28)

    assert rows.index[0] == 678
    assert rows["share"].iloc[0] > 0.9
    assert rows["weight_rank"].iloc[0] == 1


def test_the_super_weights_are_candidates(written):
    assert set(SUPER) <= set(candidates(written))


def test_without_one_weight_of_half_a_million_the_model_breaks(model):
    items = Texts(max_tokens=128).items(model)[:1]
    found = super_weights(model, SUPER, items, n_controls=1)
    worse = found["perplexity"] / found["base_perplexity"]
    controls = found["control_perplexity"] / found["base_perplexity"]

    assert worse.sel(intervention="11.507.1229") > 3
    assert worse.sel(intervention=TOGETHER) > 1000
    assert (abs(controls - 1) < 0.005).all()


def test_the_massive_activation_hardly_depends_on_the_text(model):
    texts = [text for text in shipped().split("\n\n") if len(text) > 200][:8]
    cells = [(15, 0, CHANNEL)]
    found = input_independence(model, texts, cells, max_tokens=1).isel(cell=0)
    without, along = found.sel(bos="without"), found.sel(bos="with")

    assert without["cv"] < 0.1
    assert abs(without["mean"] - 23_445) < 2_500
    assert abs(along["mean"] - 24_891) < 250
    assert np.isclose(along["cv"], 0)
