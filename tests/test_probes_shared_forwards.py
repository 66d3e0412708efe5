"""One forward for all detectors of a text, and an atlas that goes on without some."""

import json

import pytest
from test_probes_retrieval import Counted
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.probes import DETECTORS, EXPERIMENTS, detect
from interp.probes.atlas import atlas
from interp.probes.detector import REPEATED_RANDOM, TEXT

TEXT_OF_40 = " ".join(f"w{3 + place * place % 40}" for place in range(40))


def load(family):
    return interp.load(tiny(family)[0], tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def llama():
    return load("llama")


def skipped(found):
    return {each["what"]: each["why"] for each in json.loads(found.attrs["skipped"])}


def test_all_detectors_of_a_text_share_one_forward(llama):
    names = [n for n, kind in DETECTORS.items() if kind.task == TEXT]
    assert len(names) > 15
    with Counted(llama) as forwards:
        atlas(llama, TEXT_OF_40, detectors=names)
    assert forwards.n == 1


def test_repeated_tokens_take_one_forward_a_seed(llama):
    names = [n for n, kind in DETECTORS.items() if kind.task == REPEATED_RANDOM]
    assert len(names) > 1
    with Counted(llama) as forwards:
        detect(
            llama, ["sinks", "entropy", *names], texts=[TEXT_OF_40] * 2, seeds=(0, 1)
        )
    # Two texts, two seeds; what an atlas has of tokens is read off the same.
    assert forwards.n == 2 + 2


def test_an_encoder_names_what_needs_a_causal_order_and_the_atlas_goes_on():
    causal = ["span", "receiver", "waad_tokens", "fai_tokens", "local"]
    found = atlas(
        load("bert"), TEXT_OF_40, detectors=["entropy", *causal, *EXPERIMENTS]
    )
    reasons = skipped(found)

    assert "entropy" in found["heads"]
    for name in ("receiver", "waad_tokens", "fai_tokens", "local"):
        assert "look ahead" in reasons[name], name
    for name in ("retrieval", "key_value_retrieval", "gates"):
        assert name not in found["heads"]
        assert reasons[name], name


def test_a_short_context_names_what_has_no_room_and_the_atlas_goes_on(llama):
    found = atlas(llama, TEXT_OF_40, detectors=["sinks", *EXPERIMENTS])
    reasons = skipped(found)

    assert "sinks" in found["heads"]
    for name in ("retrieval", "retrieval_soft", "gates"):
        assert name not in found["heads"]
        assert "made for 64" in reasons[name] or "context" in reasons[name], name
