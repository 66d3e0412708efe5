"""What the detectors find in a trained model: directions, not digits."""

from functools import cache
from importlib.resources import files

import pytest

import interp
from interp.heads import HeadId, HeadSet
from interp.probes import DETECTORS
from interp.probes.activations import runs
from interp.probes.atlas import atlas
from interp.probes.sinks import SinkTokens, sink_metric

pytestmark = [pytest.mark.real, pytest.mark.slow]

BLOCK = 96


@cache
def model():
    return interp.load("smollm2-135m")


@cache
def heads():
    return found()["heads"].to_dataset()


@cache
def found():
    text = files("interp").joinpath("data", "lighthouse.txt").read_text("utf-8")
    options = {"max_tokens": 4 * BLOCK, "block": BLOCK, "seeds": (0,)}
    options["detectors"] = DETECTORS
    return atlas(model(), text[:1500], **options)


def strongest(name, k):
    return list(HeadSet.top(heads()[name], k=k))


def test_first_token_sinks_begin_at_layer_12():
    by_layer = heads()["sinks"].mean("head")

    assert by_layer.sel(layer=11) < 0.1 < 0.25 < by_layer.sel(layer=12)
    assert (by_layer.sel(layer=slice(12, 28)) > 0.2).all()
    assert (by_layer.sel(layer=slice(0, 1)) < 0.1).all()


def test_induction_heads_stand_clear_of_the_rest():
    induction = heads()["induction"]

    assert strongest("induction", 1) == [HeadId(18, 6)]
    assert induction.max() > 0.8
    assert 5 <= int((induction > 0.3).sum()) <= 20
    assert float(induction.median()) < 0.02
    assert all(17 <= head.layer <= 24 for head in strongest("induction", 5))


def test_echo_and_induction_are_different_heads():
    assert {HeadId(14, 3), HeadId(15, 6), HeadId(8, 0)} == set(strongest("echo", 3))
    assert not set(strongest("echo", 5)) & set(strongest("induction", 5))


def test_the_previous_token_head_is_known():
    assert strongest("previous_token", 2) == [HeadId(16, 0), HeadId(11, 1)]


def test_layer_0_spreads_its_attention_most():
    assert heads()["entropy"].mean("head").argmax("layer").item() == 0


def test_a_massive_activation_is_written_by_the_mlp_of_block_11():
    first = runs(found()["text_0"].to_dataset()).iloc[0]

    assert (first["channel"], first["token"]) == (507, 0)
    assert (first["first_layer"], first["last_layer"]) == (12, 28)
    assert (first["writer_block"], first["writer_half"]) == (11, "mlp")
    assert first["share"] > 0.9


def test_there_are_no_sinks_where_one_token_repeats():
    capture = SinkTokens().needs
    repeated = interp.trace(model(), [338] * 64, capture=capture)
    words = "The keeper counted the steps to the lamp. " * 9
    text = interp.trace(model(), words, capture=capture, max_tokens=64)

    assert sink_metric(repeated) < 2
    assert sink_metric(text) > 55
