"""What an atlas keeps of a text's tokens."""

import json
from dataclasses import dataclass

import hand_traces as hand
import numpy as np
import pytest
import tiny_models
import xarray as xr

import interp
from interp.capture import Capture
from interp.errors import InputError
from interp.kernels.definitions import Received
from interp.probes.activations import MassiveActivations
from interp.probes.atlas import atlas
from interp.probes.detector import Detector, statistic
from interp.probes.locality import Distance
from interp.probes.sinks import SinkTokens
from interp.probes.tokens import over_tokens


@dataclass(frozen=True)
class OfTokens(Detector):
    """A number for every head and query, or whatever else is asked for."""

    over: str = "entropy"

    name = "of_tokens"
    unit = "nats"
    long_name = "something of tokens"
    description = "It stands for any detector over tokens."
    dims = ("layer", "head", "query")

    @property
    def needs(self):
        return Capture((Received(),), edges=None, residual=False)

    def measure(self, trace):
        return statistic(trace, self.over, self.site)


def trace():
    weights = hand.random_weights(0)
    return hand.trace(self=hand.site(weights, tokens=list(range(12))))


@pytest.mark.parametrize("over", ["entropy", "received"])
def test_further_detectors_are_kept_as_means_over_heads(over):
    given = trace()
    found = over_tokens(given, SinkTokens(), MassiveActivations(), [OfTokens(over)])
    kept = found["of_tokens"]
    assert kept.dims == ("layer", "token")
    expected = given["self"].dataset[over].mean("head", dtype="float64")
    np.testing.assert_allclose(kept, expected)
    assert kept.attrs["long_name"] == "something of tokens, mean over heads"
    assert kept.attrs["description"] == OfTokens.description
    assert found.attrs["skipped"] == "[]"


def test_without_further_detectors_nothing_changes():
    given = trace()
    plain = over_tokens(given, SinkTokens(), MassiveActivations())
    more = over_tokens(given, SinkTokens(), MassiveActivations(), [OfTokens()])
    xr.testing.assert_identical(plain, more.drop_vars("of_tokens"))


def test_what_the_trace_cannot_feed_is_skipped_with_the_reason():
    found = over_tokens(
        trace(), SinkTokens(), MassiveActivations(), [OfTokens("top_mass")]
    )
    (skipped,) = json.loads(found.attrs["skipped"])
    assert "of_tokens" not in found
    assert skipped["what"] == "of_tokens"
    assert "Asked for top_mass" in skipped["why"]


@pytest.fixture(scope="module")
def model():
    module, _ = tiny_models.tiny("llama")
    return interp.load(module, tokenizer=tiny_models.tiny_tokenizer())


class TestAtlas:
    def test_token_detectors_stand_in_every_text(self, model):
        texts = {"one": "w3 w4 w5 w3 w4 w6 w7 w8", "two": "w5 w6 w7 w5 w9"}
        found = atlas(model, texts, detectors=["sinks", OfTokens("received")])
        for name in ("text_0", "text_1"):
            text = found[name].to_dataset()
            np.testing.assert_allclose(text["of_tokens"], text["received"])
            assert "skipped" not in text.attrs
        assert "of_tokens" not in found["heads"]

    def test_what_they_lack_is_in_the_record(self, model):
        found = atlas(model, "w3 w4 w5 w6", detectors=["sinks", OfTokens("entropy")])
        skipped = {e["what"]: e["why"] for e in json.loads(found.attrs["skipped"])}
        assert "Asked for entropy" in skipped["of_tokens"]

    def test_all_read_the_same_site(self, model):
        with pytest.raises(InputError, match="heads of one site"):
            atlas(
                model,
                "w3 w4",
                detectors=[Distance(), OfTokens("received", site="encoder")],
            )
