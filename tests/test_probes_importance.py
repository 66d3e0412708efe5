"""Scores of tokens: by hand, by definition from dense maps, and as laws."""

import hand_traces as hand
import numpy as np
import pytest
import torch
import xarray as xr
from test_families import alone, run
from tiny_models import N_TOKENS, VOCAB, tiny
from tolerance import assert_as_precise
from torch import Tensor

import interp
from interp.capture import Capture
from interp.errors import InputError, NotCapturedError
from interp.kernels.definitions import Received, ReceivedLate
from interp.probes.importance import (
    AccumulatedAttention,
    ObservationWindow,
    SpAttenTokens,
    token_importance,
)
from interp.probes.registry import DETECTORS

FAMILIES = ("llama", "gemma3", "gpt_oss")
"""Grouped heads, sliding windows, learned sinks."""

LAST, KERNEL = 4, 3
CAPTURE = Capture((Received(), ReceivedLate(LAST)), edges=None, residual=False)


def trace_of(weights, last=2, **options):
    """A trace by hand, with what its last queries give."""
    return hand.trace(self=hand.site(weights, last=last, **options))


def test_three_tokens_by_hand():
    # Columns are summed: 1 + 1/2 + 1/4, then 1/2 + 1/4, then 1/2.
    rows = [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 4, 1 / 4, 1 / 2]]
    trace = trace_of([[rows]], last=1)

    assert AccumulatedAttention()(trace).values.tolist() == [[[7 / 4, 3 / 4, 1 / 2]]]
    fair = AccumulatedAttention(fair=True)(trace).values[0, 0]
    assert fair == pytest.approx([7 / 12, 3 / 8, 1 / 2])
    late = ObservationWindow(1, kernel=1)(trace).values[0, 0]
    assert late[:2].tolist() == [1 / 4, 1 / 4]
    assert np.isnan(late[2])


def test_neighbours_are_pooled_with_zeros_beyond_the_ends():
    rows = np.zeros((6, 6))
    rows[5] = [0.3, 0, 0, 0.6, 0, 0.1]
    rows[range(5), range(5)] = 1
    trace = trace_of([[rows]], last=1)

    mean = ObservationWindow(1, kernel=3)(trace).values[0, 0, :5]
    assert mean == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.2])
    largest = ObservationWindow(1, kernel=3, pooling="max")(trace).values[0, 0, :5]
    assert largest == pytest.approx([0.3, 0.3, 0.6, 0.6, 0.6])


def test_what_the_window_itself_receives_is_not_pooled_into_the_keys_before_it():
    trace = trace_of(hand.pointing([0, 1, 2, 3])[None, None], last=1)

    scores = ObservationWindow(1, kernel=3)(trace).values[0, 0]
    assert scores[:3].tolist() == [0, 0, 0]
    assert np.isnan(scores[3])


def test_importance_cumulates_over_heads_and_layers():
    first = hand.pointing([0, 0, 0])
    own = hand.pointing([0, 1, 2])
    trace = trace_of([[first, own], [own, own]])

    total = SpAttenTokens()(trace).values
    assert total == pytest.approx(np.array([[4, 1, 1], [6, 3, 3]]))
    fair = SpAttenTokens(fair=True)(trace).values
    assert fair == pytest.approx(
        np.array([[4 / 6, 1 / 4, 1 / 2], [6 / 12, 3 / 8, 3 / 4]])
    )


def test_a_text_no_longer_than_the_window_has_no_score():
    trace = trace_of(hand.uniform(4), last=4)

    assert np.isnan(ObservationWindow(4)(trace).values).all()
    assert ObservationWindow(4).keep(ObservationWindow(4)(trace), 4).all()


def test_a_text_shorter_than_the_capacity_stays_whole():
    trace = trace_of(hand.random_weights(0))
    window = ObservationWindow(2)

    assert window.keep(window(trace)).all()
    kept = window.keep(window(trace), 5)
    assert (kept.sum("key") == 5).all()
    assert kept.isel(key=slice(-2, None)).all()


def test_a_key_that_the_last_queries_cannot_see_gets_nothing_from_them():
    weights = hand.pointing(np.arange(8))[None, None]
    trace = trace_of(weights, window=[2])

    assert np.isnan(trace["self"]["received_late"].values[0, 0, :5]).all()
    for fair in (False, True):
        scores = ObservationWindow(2, kernel=1, fair=fair)(trace).values[0, 0]
        assert scores[:6].tolist() == [0] * 6


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fair_variant_of_accumulated_attention_is_received(name):
    trace = interp.trace(tiny(name)[0], tiny(name)[1], capture=CAPTURE)
    fair = AccumulatedAttention(fair=True)(trace)

    xr.testing.assert_equal(
        fair.drop_attrs(deep=False), trace["self"]["received"].drop_attrs(deep=False)
    )


def by_definition(layers: list[Tensor], fair: bool) -> dict[str, Tensor]:
    """Each score of one text from its dense maps `[sample, head, query, key]`."""
    p = torch.stack([layer[0] for layer in layers])
    sees, n_keys = (p > 0).sum(2), p.shape[3]
    columns = p.sum(2)
    before = n_keys - LAST
    late, watched = p[:, :, -LAST:].sum(2), (p[:, :, -LAST:] > 0).sum(2)
    share = (late / watched.clamp(min=1) if fair else late)[..., :before]
    pools = {
        "mean": torch.nn.functional.avg_pool1d,
        "max": torch.nn.functional.max_pool1d,
    }
    pooled = {
        how: torch.nn.functional.pad(
            pool(share, KERNEL, padding=KERNEL // 2, stride=1),
            (0, LAST),
            value=torch.nan,
        )
        for how, pool in pools.items()
    }
    total, seen = columns.sum(1).cumsum(0), sees.sum(1).cumsum(0)
    return {
        "accumulated": columns / sees if fair else columns,
        **pooled,
        "spatten": total / seen if fair else total,
    }


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_text_of_a_padded_batch_scores_as_its_own_eager_maps_say(name, side, fair):
    model, inputs = tiny(name)
    mask = torch.ones(2, N_TOKENS, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(-4, None)] = 0
    inputs = {**inputs, "attention_mask": mask}
    detectors = {
        "accumulated": AccumulatedAttention(fair),
        "mean": ObservationWindow(LAST, KERNEL, "mean", fair),
        "max": ObservationWindow(LAST, KERNEL, "max", fair),
        "spatten": SpAttenTokens(fair),
    }
    trace = interp.trace(model, inputs, capture=CAPTURE)
    found = {key: detector(trace) for key, detector in detectors.items()}
    for sample in range(2):
        own = alone(inputs, sample)
        n_keys = own["input_ids"].shape[1]
        truth = by_definition(list(run(name, own, torch.float64).attentions), fair)
        twins = [
            by_definition(list(run(name, own, torch.float32, moved).attentions), fair)
            for moved in range(3)
        ]
        for key, scores in found.items():
            ours = scores.isel(sample=sample)
            assert ours.isel(key=slice(n_keys, None)).isnull().all()
            ours = torch.from_numpy(ours.values[..., :n_keys]).float()
            near = [twin[key] for twin in twins]
            assert_as_precise(ours, truth[key], *near, name=key)


def test_all_scores_of_a_trace_have_the_window_that_it_has():
    ids = torch.randint(3, VOCAB, (20,), generator=torch.Generator().manual_seed(0))
    trace = interp.trace(tiny("llama")[0], ids, capture=CAPTURE)
    scores = token_importance(trace)

    assert set(scores) == {
        "accumulated_attention",
        "observation_window",
        "spatten_tokens",
    }
    assert scores["observation_window"].attrs["window"] == LAST
    xr.testing.assert_identical(
        scores["spatten_tokens"], SpAttenTokens()(trace).rename("spatten_tokens")
    )
    fair = token_importance(trace, fair=True)
    assert all(values.attrs["units"] == "fraction" for values in fair.values())


def test_scores_of_tokens_are_found_by_name():
    for kind in (AccumulatedAttention, ObservationWindow, SpAttenTokens):
        assert DETECTORS[kind.name] is kind


def test_a_trace_of_another_window_is_refused():
    trace = trace_of(hand.uniform(8), last=2)

    with pytest.raises(NotCapturedError, match=r"last=3; the trace has last=2"):
        ObservationWindow(3)(trace)


def test_where_queries_look_ahead_none_is_the_last():
    node = trace_of(hand.uniform(8), last=2)["self"].to_dataset()

    with pytest.raises(NotCapturedError, match="site encoder"):
        ObservationWindow(2)(hand.trace(encoder=node))


@pytest.mark.parametrize("kernel", [0, 4])
def test_a_kernel_without_a_middle_is_refused(kernel):
    with pytest.raises(InputError, match=f"kernel={kernel}"):
        ObservationWindow(kernel=kernel)


def test_unknown_pooling_is_refused():
    with pytest.raises(InputError, match="'sum'"):
        ObservationWindow(pooling="sum")
