import json

import hand_traces as hand
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError, NotCapturedError
from interp.kernels.definitions import STATISTICS
from interp.probes import DETECTORS, detect, resolve
from interp.probes.detector import HEADS, RowDetector, edge, statistic
from interp.probes.locality import Distance, Local
from interp.probes.middle import MiddleMass
from interp.probes.receivers import Receivers

BLOCK, COPIES = 3, 4
PER_HEAD = [name for name, kind in DETECTORS.items() if kind.dims == HEADS]


def repeated_trace(weights):
    """A trace that feeds every detector: 12 tokens, a block of 3 four times over."""
    n_layers, _, n_tokens, _ = weights.shape
    shape = (n_layers + 1, n_tokens)
    return hand.trace(
        self=hand.site(weights, tokens=[0, 1, 2] * COPIES, local_window=4),
        residual=hand.residual(np.ones(shape), np.zeros(shape), np.ones(n_layers + 1)),
        task="repeated_random",
        block_length=BLOCK,
        copies=COPIES,
    )


def made(name):
    """A detector whose options suit 12 tokens."""
    if name in (Local.name, MiddleMass.name):
        return DETECTORS[name](window=4)
    if name == Receivers.name:
        return Receivers(near=2, least_queries=1)
    return DETECTORS[name]()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_says_what_it_measures(name):
    result = made(name)(repeated_trace(hand.random_weights(0)))

    assert result.name == name
    assert set(result.dims) == set(DETECTORS[name].dims)
    assert result.attrs["units"]
    assert result.attrs["long_name"]
    assert result.attrs["description"].endswith(".")
    assert result.attrs["source"]
    assert result.attrs["site"] in {"self", "residual"}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_needs_only_statistics_that_exist(name):
    needs = made(name).needs

    assert all(each.name in STATISTICS for each in needs.statistics)
    assert needs.statistics or needs.edges or needs.residual


@pytest.mark.parametrize("name", PER_HEAD)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(3)))
def test_permuting_heads_permutes_the_result(name, seed, order):
    weights = hand.random_weights(seed)
    straight = made(name)(repeated_trace(weights))
    permuted = made(name)(repeated_trace(weights[:, order]))

    np.testing.assert_array_equal(permuted.values, straight.values[:, order])


@pytest.mark.parametrize("name", PER_HEAD)
def test_a_batch_gives_what_each_text_gives_alone(name):
    traces = [repeated_trace(hand.random_weights(seed)) for seed in (1, 2)]
    batch = xr.DataTree.from_dict(
        {"self": xr.concat([each["self"].to_dataset() for each in traces], "sample")}
    )
    batch.attrs = traces[0].attrs
    together = made(name)(batch)

    for index, alone in enumerate(traces):
        xr.testing.assert_equal(
            together.isel(sample=index).transpose(*HEADS), made(name)(alone)
        )


@pytest.mark.parametrize("name", PER_HEAD)
def test_a_head_that_a_layer_lacks_stays_nan(name):
    weights = hand.random_weights(3)
    weights[1, 2] = np.nan
    result = made(name)(repeated_trace(weights))

    assert np.isnan(result.values[1, 2])
    assert np.isfinite(result.values).sum() == weights.shape[0] * weights.shape[1] - 1


@pytest.mark.parametrize(
    "name", [name for name in PER_HEAD if issubclass(DETECTORS[name], RowDetector)]
)
def test_the_mean_over_rows_is_the_measure(name):
    detector, trace = made(name), repeated_trace(hand.random_weights(4))
    assert isinstance(detector, RowDetector)

    np.testing.assert_allclose(
        detector(trace).values, np.nanmean(detector.rows(trace).astype(float), axis=-1)
    )


def test_several_detectors_give_one_dataset():
    trace = repeated_trace(hand.random_weights(0))
    found = detect(trace, ["sinks", Local(window=4)])

    assert list(found) == ["sinks", "local"]
    assert found["local"].attrs["window"] == 4
    assert list(detect(trace, "sinks")) == ["sinks"]


def test_without_names_what_cannot_run_is_listed_with_the_reason():
    plain = hand.trace(self=hand.site(hand.random_weights(0), tokens=range(12)))
    found = detect(plain)
    skipped = {each["what"]: each["why"] for each in json.loads(found.attrs["skipped"])}

    assert "sinks" in found
    assert set(found) | set(skipped) == {probe.name for probe in resolve()}
    assert set(skipped) & set(DETECTORS) == {
        "echo",
        "massive_activations",
        "intermediate_sinks",
    }
    assert "repeated_random" in skipped["echo"]


def test_an_unknown_detector_is_answered_with_the_nearest():
    trace = repeated_trace(hand.random_weights(0))

    with pytest.raises(InputError, match=r"'inductoin'.*mean 'induction'"):
        detect(trace, ["sinks", "inductoin"])


def test_two_detectors_of_one_name_are_refused():
    with pytest.raises(InputError, match="distance"):
        resolve(["distance", Distance(exclude_sink=True)])


def test_a_missing_statistic_is_named_with_the_remedy():
    node = hand.site(hand.random_weights(0)).drop_vars("first_mass")

    with pytest.raises(NotCapturedError, match=r"first_mass.*\(FirstMass\(\),\)"):
        detect(hand.trace(self=node), ["sinks"])


def test_a_missing_edge_is_named_with_the_remedy():
    node = hand.site(hand.random_weights(0), tokens=range(12)).sel(edge=["previous"])

    with pytest.raises(NotCapturedError, match=r"induction.*TokenEdges"):
        edge(hand.trace(self=node), "induction")
    with pytest.raises(NotCapturedError, match=r"edges=TokenEdges"):
        edge(hand.trace(self=node.drop_vars("edges")), "induction")


def test_another_parameter_than_asked_is_refused():
    trace = hand.trace(self=hand.site(hand.random_weights(0), local_window=4))

    with pytest.raises(NotCapturedError, match=r"window=8.*window=4.*LocalMass"):
        statistic(trace, "local_mass", window=8)


def test_the_site_is_self_then_encoder_unless_named():
    weights = hand.random_weights(0)
    encoder = hand.site(weights)
    both = hand.trace(cross=hand.site(weights[..., ::-1, :]), encoder=encoder)

    assert DETECTORS["sinks"]()(both).attrs["site"] == "encoder"
    assert DETECTORS["sinks"](site="cross")(both).attrs["site"] == "cross"
    with pytest.raises(NotCapturedError, match=r"site self; the trace holds cross, en"):
        DETECTORS["sinks"](site="self")(both)


def test_the_trace_is_left_as_it_was():
    trace = repeated_trace(hand.random_weights(0))
    before = trace.copy(deep=True)
    detect(trace)

    xr.testing.assert_identical(trace, before)
