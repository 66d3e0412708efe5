import hand_traces as hand
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError, NotCapturedError
from interp.probes.locality import Distance, Entropy, GlobalHead, Local


def trace(*weights, **options):
    """A trace of one layer with these heads."""
    return hand.trace(self=hand.site(np.stack(weights)[None], **options))


def heads_at(*distances):
    """A signal over one layer whose heads have these distances."""
    return xr.DataArray([list(distances)], dims=("layer", "head"))


def test_distance_is_how_far_back_the_head_looks():
    first = hand.pointing([0, 0, 0, 0])
    previous = hand.pointing([0, 0, 1, 2])

    found = Distance()(trace(first, previous))
    assert found.values.tolist() == [[(1 + 2 + 3) / 3, 1]]
    assert found.attrs["units"] == "tokens"


def test_distance_without_the_sink_is_that_of_the_other_keys():
    half = [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]

    assert Distance()(trace(half)).item() == ((0.5 * 1) + (0.5 * 2 + 0.5 * 1)) / 2
    # Row 1 looks elsewhere at itself (0 back), row 2 at key 1 (1 back).
    assert Distance(exclude_sink=True)(trace(half)).item() == (0 + 1) / 2


def test_rows_that_see_only_the_sink_are_left_out():
    rows = [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0]]

    assert Distance(exclude_sink=True)(trace(rows)).item() == 1
    assert np.isnan(Distance(exclude_sink=True)(trace(hand.pointing([0, 0, 0]))).item())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.booleans())
def test_distance_without_the_sink_equals_dropping_the_first_column(seed, learned_sink):
    weights = hand.random_weights(seed)
    if learned_sink:
        weights *= np.random.default_rng(seed).uniform(0.5, 1, (*weights.shape[:3], 1))
    rest = weights.copy()
    rest[..., 0] = 0
    with np.errstate(invalid="ignore"):
        rest /= rest.sum(-1, keepdims=True)
    back = np.arange(12)[:, None] - np.arange(12)
    kept = 1 - weights[..., 0] - (1 - weights.sum(-1)) > 1e-2
    dense = np.where(kept, (rest * back).sum(-1), np.nan)

    found = Distance(exclude_sink=True).rows(hand.trace(self=hand.site(weights)))
    np.testing.assert_allclose(
        found.where(kept).values[..., 1:], dense[..., 1:], rtol=1e-3, atol=1e-3
    )


def test_entropy_of_uniform_rows_is_the_logarithm_of_their_length():
    found = Entropy()(hand.trace(self=hand.site(hand.uniform(3))))

    assert found.item() == pytest.approx((np.log(2) + np.log(3)) / 2)
    assert found.attrs["units"] == "nats"


@pytest.mark.parametrize("window", [None, [2]])
def test_normalized_entropy_of_uniform_rows_is_one(window):
    rows = hand.uniform(6)
    if window:
        back = np.arange(6)[:, None] - np.arange(6)
        rows = np.where(back < window[0], rows, 0)
        rows /= rows.sum(-1, keepdims=True)
    found = Entropy(normalized=True)(hand.trace(self=hand.site(rows, window=window)))

    assert found.item() == pytest.approx(1)
    assert found.attrs["units"] == "fraction"


def test_local_counts_only_queries_that_could_look_further():
    # Queries 2 and 3 see keys beyond the window of 2; one of them looks there.
    found = Local(window=2)(trace(hand.pointing([0, 0, 0, 3]), local_window=2))

    assert found.item() == 1 / 2
    assert found.attrs["window"] == 2


def test_local_is_nan_for_a_text_within_the_window():
    assert np.isnan(Local(window=4)(trace(hand.uniform(4)[0, 0], local_window=4)))


def test_global_heads_look_furthest_and_local_heads_nearest():
    found = GlobalHead().finish(heads_at(5, 1, 9, 2, 8, 3, 4, 6, 7, 0))

    assert found.values.tolist() == [[0, -1, 1, -1, 1, 0, 0, 0, 1, -1]]


def test_heads_are_ranked_over_all_layers():
    signal = xr.DataArray([[1.0, 2, 3], [4, 5, 6]], dims=("layer", "head"))

    assert GlobalHead(share=0.5).finish(signal).values.tolist() == [
        [-1, -1, -1],
        [1, 1, 1],
    ]


def test_heads_that_tie_across_the_border_are_on_neither_side():
    assert GlobalHead(share=0.5).finish(heads_at(1, 1, 1, 1)).values.tolist() == [
        [0, 0, 0, 0]
    ]


def test_a_missing_head_has_no_label_and_no_rank():
    found = GlobalHead(share=0.5).finish(heads_at(1, np.nan, 2))

    np.testing.assert_array_equal(found.values, [[-1, np.nan, 1]])


@pytest.mark.parametrize("share", [0, 0.51, -1])
def test_shares_that_overlap_are_refused(share):
    with pytest.raises(InputError, match="share"):
        GlobalHead(share=share)


@pytest.mark.parametrize("detector", [Local(), GlobalHead()])
def test_where_queries_look_ahead_near_and_far_are_not_told_apart(detector):
    encoder = hand.trace(encoder=hand.site(hand.uniform(4)))

    with pytest.raises(NotCapturedError, match="site encoder, where queries also look"):
        detector(encoder)


def test_the_split_of_a_trace_is_that_of_its_distances():
    near, far = hand.pointing([0, 1, 2, 3]), hand.pointing([0, 0, 0, 0])

    assert GlobalHead(share=0.5)(trace(near, far)).values.tolist() == [[-1, 1]]
