"""Preplan and anchor by hand, as laws, and from traces that hold less."""

import json
from dataclasses import replace

import hand_traces as hand
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError, NotCapturedError, ShapeError
from interp.probes import DETECTORS
from interp.probes.coupling import Coupling
from interp.probes.reach import LOCAL, Reach, Span, middle_layers, on_side
from interp.probes.receivers import Receivers
from interp.probes.response_tokens import FaiTokens, WaadTokens
from interp.probes.rhythm import Rhythm

HALVES = Rhythm(
    reach=Reach(share=0.5),
    clip=3,
    horizons=((2, None), (0, None)),
    receivers=Receivers(near=2, least_queries=1),
    coupling=Coupling(draws=20),
)
seeds = st.integers(0, 999)


def response(weights, first=2, **options):
    """A trace of a response that begins at `first`."""
    node = hand.site(weights, **{"clip": 3, **options})
    return hand.trace(self=node, prompt_tokens=first, text_name="a")


def same(ours, wanted):
    ours, wanted = (
        torch.from_numpy(np.array(each)).double() for each in (ours, wanted)
    )
    torch.testing.assert_close(ours.float(), wanted.float(), equal_nan=True)


def six_tokens(last):
    """One head that looks a token back, and one that looks at token 2 if it can."""
    back = hand.pointing([0, 0, 1, 2, 3, last])
    anchor = hand.pointing([0, 0, 0, 2, 2, 2])
    return np.array([[back, anchor]])


def test_six_tokens_by_hand():
    found = HALVES.read(response(six_tokens(last=2)))

    # Distances of tokens 2 to 5: 1, 1, 1, 3 of one head, 2, 1, 2, 3 of the other.
    assert found["span"].sel(sink="with").values.tolist() == [[6 / 4, 2]]
    assert found["reach"].sel(sink="with").values.tolist() == [[-1, 1]]
    assert found["waad"].values.tolist() == [1, 1, 1, 3]
    assert found["delta"].values.tolist()[:3] == [0, 0, 2]
    assert np.isnan(found["delta"].values[3])
    assert found["preplan"].values.tolist() == [False, False, True, False]
    # Token 2 is looked at by tokens 3, 4 and 5: by 4 and 5 from two tokens on.
    far, end = found["fai"].values
    assert far[:2].tolist() == [1, 0]
    assert np.isnan(far[2:]).all()
    assert end.tolist() == [3 / 4, 0, 0, 0]
    assert found["anchor"].values[:, 0].all()
    assert found["token_text"].values.tolist() == ["t2", "t3", "t4", "t5"]


def test_heads_that_tie_are_on_neither_side():
    found = HALVES.read(response(six_tokens(last=0)))

    assert found["span"].sel(sink="with").values.tolist() == [[2, 2]]
    assert found["reach"].sel(sink="with").values.tolist() == [[0, 0]]
    assert found["waad"].isnull().all()


@settings(max_examples=20, deadline=None)
@given(seed=seeds, clip=st.integers(1, 12))
def test_look_back_lies_between_0_and_its_clip(seed, clip):
    trace = response(hand.random_weights(seed), clip=clip)
    waad = replace(HALVES, clip=clip).read(trace)["waad"]

    assert waad.min() >= 0
    assert waad.max() <= np.nextafter(np.float32(clip), np.float32(99))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, share=st.floats(0.05, 0.95))
def test_token_sets_have_their_share_of_the_tokens_that_count(seed, share):
    found = replace(HALVES, share=share).read(response(hand.random_weights(seed)))

    for marks, curve in (("preplan", "delta"), ("anchor", "fai")):
        values, counted = found[curve], found[curve].notnull().sum("token")
        chosen = found[marks].sum("token")
        wanted = np.maximum(np.round(share * counted), 1)
        np.testing.assert_array_equal(chosen, wanted)
        least = values.where(found[marks]).min("token")
        assert not (values.where(~found[marks]).max("token") > least).any()


@settings(max_examples=10, deadline=None)
@given(seed=seeds, order=st.permutations(range(3)))
def test_the_order_of_heads_changes_no_curve(seed, order):
    weights = hand.random_weights(seed)
    one, other = (HALVES.read(response(w)) for w in (weights, weights[:, list(order)]))

    for curve in ("waad", "fai", "receiver_fai"):
        same(one[curve], other[curve])


def sink_far_near():
    """Heads that give nearly all to the sink, look five tokens back, and two."""
    sink, far, near = np.zeros((3, 12, 12))
    for t in range(12):
        sink[t, 0] = 0.9
        sink[t, max(t - 1, 0)] += 0.1
        far[t, max(t - 5, 0)] = 1
        near[t, max(t - 2, 0)] = 1
    return np.array([[sink, far, near]])


def test_a_sink_decides_which_heads_are_global():
    found = Reach(share=1 / 3)(response(sink_far_near(), first=6))

    assert found["reach"].sel(sink="with").values.tolist() == [[1, 0, -1]]
    assert found["reach"].sel(sink="without").values.tolist() == [[-1, 1, 0]]
    assert found["overlap"].values.tolist() == [0, 0]
    assert Reach(exclude_sink=True).sink == "without"
    local = on_side(found["reach"].sel(sink="with"), LOCAL)
    assert [str(head) for head in local] == ["L0.H2"]


def test_a_span_is_over_the_response_alone():
    trace = response(sink_far_near(), first=6)
    rows = np.arange(6, 12)

    same(Span()(trace).values[0], [(0.9 * rows + 0.1).mean(), 5, 2])
    same(Span(exclude_sink=True)(trace).values[0], [1, 5, 2])


def test_middle_layers_are_evenly_spaced():
    assert middle_layers(30) == (10, 12, 15, 17, 20)
    assert middle_layers(36) == (12, 15, 18, 21, 24)
    assert middle_layers(6) == (2, 3, 4)
    assert middle_layers(1) == (0,)


def test_a_trace_that_holds_less_gives_less_and_says_so():
    found = Rhythm(clip=3).read(response(hand.random_weights(0)))
    skipped = {each["what"]: each["why"] for each in json.loads(found.attrs["skipped"])}

    assert found["horizon"].values.tolist() == ["0-end"]
    assert set(skipped) == {"receiver heads", "horizon 10-50", "horizon 10-100"}
    assert "trace_chain" in skipped["horizon 10-50"]
    assert found["receiver_fai"].isnull().all()
    assert "entropy" not in found
    links = found["observed"].isel(horizon=0)
    assert links.notnull().values.tolist() == [False, False, True]


def test_everything_has_a_unit_and_a_title():
    found = HALVES.read(response(hand.random_weights(0)))

    for name in set(found) - {"token_text"}:
        assert {"units", "long_name"} <= found[name].attrs.keys(), name
    assert json.loads(found.attrs["options"])["clip"] == 3


def test_what_cannot_be_read_is_refused():
    weights = hand.random_weights(0)
    with pytest.raises(NotCapturedError, match="prompt_tokens"):
        HALVES.read(hand.trace(self=hand.site(weights, clip=3)))
    with pytest.raises(NotCapturedError, match="waad with clip=10; the trace has cli"):
        Rhythm().read(response(weights))
    with pytest.raises(NotCapturedError, match=r"5-9 was asked for.*0-end, 2-end"):
        replace(HALVES, horizons=((5, 9),)).read(response(weights))
    encoder = hand.trace(encoder=hand.site(weights), prompt_tokens=2)
    with pytest.raises(NotCapturedError, match="look ahead"):
        HALVES.read(encoder)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Rhythm(share=1.0), "share=1.0"),
        (lambda: Rhythm(receiver_share=0), "receiver_share=0"),
        (lambda: Rhythm(horizons=()), "One or more horizons"),
        (lambda: Rhythm(horizons=((1, 2), (1, 2))), "differ"),
        (lambda: Rhythm(horizons=((5, 4),)), "far of at least 5"),
        (lambda: Reach(share=0.6), "0.6"),
        (lambda: Reach(layers="top"), "'top'"),
        (lambda: Receivers(near=-1), "-1"),
    ],
)
def test_options_without_meaning_are_refused(make, says):
    with pytest.raises((InputError, ShapeError), match=says):
        make()


def test_tokens_have_detectors_of_their_own():
    trace = response(hand.random_weights(0))
    found = HALVES.read(trace)

    same(WaadTokens(share=0.5, clip=3)(trace).dropna("query"), found["waad"])
    influence = FaiTokens(share=0.5)(trace)
    same(influence.dropna("key"), found["fai"].sel(horizon="0-end"))
    assert influence.attrs["far"] == "end"
    far = FaiTokens(share=0.5, near=2, far=1 << 30)(trace)
    same(far.isel(key=slice(2, None)), found["fai"].sel(horizon="2-end"))


def test_detectors_of_responses_run_only_when_asked_for():
    names = {"span", "receiver", "waad_tokens", "fai_tokens"}

    assert names <= DETECTORS.keys()
    assert not any(DETECTORS[name].by_default for name in names)


def test_a_batch_has_the_tokens_of_each_text():
    nodes = [hand.site(hand.random_weights(seed)) for seed in (1, 2)]
    together = FaiTokens()(hand.trace(self=xr.concat(nodes, "sample")))

    for sample, node in enumerate(nodes):
        same(together.isel(sample=sample), FaiTokens()(hand.trace(self=node)))
