import hand_traces as hand
import numpy as np
import pytest
import xarray as xr

from interp.errors import InputError, NotCapturedError
from interp.probes.sinks import (
    LaterSinks,
    LearnedSinks,
    Sinks,
    SinksAnywhere,
    SinkTokens,
    are_sinks,
    sink_metric,
)
from interp.probes.visibility import sees_first_key, visible_keys, visible_queries

SELF = np.arange(10)
"""Targets of a head whose queries look at themselves."""
FIRST = np.zeros(10, dtype=int)
"""Targets of a head whose queries look at the first key."""
SECOND = np.array([0, *[1] * 9])
"""Targets of a head whose queries look at the second key."""


def heads(*targets, **options):
    """A trace of one layer with these heads."""
    weights = np.stack([hand.pointing(each) for each in targets])[None]
    return hand.trace(self=hand.site(weights, **options))


def test_first_token_sink_leaves_out_row_zero():
    rows = [[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]]
    trace = hand.trace(self=hand.site([[rows]]))

    assert Sinks()(trace).item() == (0.5 + 0.25) / 2


def test_first_token_sink_counts_only_rows_whose_window_holds_the_first_token():
    rows = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    trace = hand.trace(self=hand.site([[rows], [rows]], window=[2, np.inf]))

    assert Sinks()(trace).values.ravel().tolist() == [0.5, 0.5 / 3]


def test_a_text_of_one_token_has_no_first_token_sink():
    assert np.isnan(Sinks()(hand.trace(self=hand.site([[[[1.0]]]]))).item())


def test_the_strongest_later_sink_is_found_with_its_key():
    trace = heads(FIRST, SECOND, SELF)

    assert SinksAnywhere()(trace).values.tolist() == [[0, 1, 1 / 8]]
    assert SinksAnywhere().keys(trace).values.tolist() == [[1, 1, 2]]


def test_the_last_keys_are_no_sinks_because_few_queries_see_them():
    trace = heads(SELF)

    assert SinksAnywhere()(trace).item() == 1 / 8
    assert SinksAnywhere(min_queries=1)(trace).item() == 1
    assert SinksAnywhere(min_queries=1).keys(trace).item() == 9


def test_a_text_too_short_for_a_later_sink_gives_nan_and_no_key():
    trace = hand.trace(self=hand.site(hand.uniform(8)))

    assert np.isnan(SinksAnywhere()(trace).item())
    assert SinksAnywhere().keys(trace).item() == -1


def test_later_sinks_are_counted_by_their_index_not_by_their_order():
    trace = heads(FIRST, SECOND, SELF)

    # The second head has no sink at token 0: its first sink is a later one.
    assert LaterSinks()(trace).values.tolist() == [[0, 1, 2]]
    assert LaterSinks(epsilon=0.125)(trace).values.tolist() == [[0, 1, 0]]


def test_later_sinks_at_the_end_do_not_count():
    assert LaterSinks(min_queries=1)(heads(SELF)).item() == 9
    assert np.isnan(LaterSinks()(hand.trace(self=hand.site(hand.uniform(8)))).item())


@pytest.mark.parametrize(("multiple", "n_sinks"), [(1.1, 2), (1.2, 1), (1.3, 0)])
def test_a_relative_threshold_counts_in_one_over_the_tokens(multiple, n_sinks):
    # Keys 1 and 2 of 10 receive 1/9 and 1/8.
    assert LaterSinks(multiple, relative=True)(heads(SELF)).item() == n_sinks


def test_a_relative_threshold_follows_the_length_of_each_text():
    both = xr.concat([hand.site(hand.uniform(12))] * 2, "sample")
    lengths = ("sample", [12, 10])
    both = both.assign_coords(query_length=lengths, key_length=lengths)
    both["received"] = xr.full_like(both["received"], 0.45)  # 5/12 < 0.45 < 5/10
    found = are_sinks(hand.trace(self=both), 5.0, relative=True).sel(key=1)

    assert found.values.ravel().tolist() == [1, 0]


def test_the_cells_of_sinks_are_listed_with_what_they_receive():
    cells = SinkTokens().cells(heads(FIRST, SECOND, tokens=range(10)))

    assert cells.to_dict("list") == {
        "layer": [0, 0],
        "head": [0, 1],
        "key": [0, 1],
        "key_token": ["t0", "t1"],
        "received": [1, 1],
    }


def test_the_sinks_of_a_batch_are_listed_text_by_text():
    texts = [heads(FIRST), heads(SECOND)]
    both = xr.concat([each["self"].to_dataset() for each in texts], "sample")
    cells = SinkTokens().cells(hand.trace(self=both))

    assert cells[["sample", "key"]].values.tolist() == [[0, 0], [1, 1]]


def test_learned_sinks_are_what_the_rows_lack():
    rows = [[0.5, 0], [0.25, 0.5]]
    trace = hand.trace(self=hand.site([[rows]]))

    assert LearnedSinks()(trace).item() == (0.5 + 0.25) / 2


def test_sink_tokens_are_the_share_of_heads_above_epsilon():
    share = SinkTokens()(heads(FIRST, FIRST, FIRST, SECOND)).values[0]

    assert share[:3].tolist() == [0.75, 0.25, 0]
    assert np.isnan(share[3:]).all()


def test_epsilon_itself_is_not_above_epsilon():
    half = (hand.pointing(FIRST) + hand.pointing(SELF)) / 2
    trace = hand.trace(self=hand.site([[half]]))

    assert SinkTokens(epsilon=0.55)(trace).values[0, 0] == 0
    assert SinkTokens(epsilon=0.54)(trace).values[0, 0] == 1


def test_sink_tokens_tell_which_heads():
    is_sink = SinkTokens().heads(heads(FIRST, SECOND))

    assert is_sink.values[0, :, :2].tolist() == [[True, False], [False, True]]
    assert not is_sink.values[..., 3:].any()


def test_a_head_that_the_layer_lacks_does_not_count_in_the_share():
    weights = np.stack([hand.pointing(FIRST), np.full((10, 10), np.nan)])[None]

    assert SinkTokens()(hand.trace(self=hand.site(weights))).values[0, 0] == 1


def test_the_sink_metric_is_a_percentage_of_heads():
    trace = heads(FIRST, FIRST, FIRST, SELF)
    metric = sink_metric(trace)

    assert metric.item() == 75
    assert sink_metric(trace, key=3).item() == 0
    assert metric.attrs["units"] == "% of heads"
    assert (metric.attrs["n_tokens"], metric.attrs["epsilon"]) == (10, 0.3)


def test_the_sink_metric_of_a_batch_is_the_mean_over_its_texts():
    texts = [heads(FIRST, FIRST), heads(FIRST, SELF)]
    both = xr.concat([each["self"].to_dataset() for each in texts], "sample")
    trace = hand.trace(self=both)

    assert sink_metric(trace).item() == 75
    assert sink_metric(trace, each_text=True).values.tolist() == [100, 50]


def test_the_sink_metric_of_a_key_beyond_the_text_is_refused():
    with pytest.raises(InputError, match="key 10; the trace has keys 0 to 9"):
        sink_metric(heads(FIRST), key=10)


@pytest.mark.parametrize("site", ["self", "encoder"])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_visible_pairs_are_counted_as_in_the_mask(site, window):
    n_tokens = 7
    back = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    sees = back >= 0 if site == "self" else np.full(back.shape, True)
    if window is not None:
        sees &= abs(back) < window
    node = hand.site(hand.uniform(n_tokens), window=window and [window])
    node = hand.trace(**{site: node}).children[site]

    queries, keys = visible_queries(node), visible_keys(node)
    assert queries.values.ravel().tolist() == sees.sum(0).tolist()
    assert keys.values.ravel().tolist() == sees.sum(1).tolist()


@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_visible_pairs_are_counted_as_in_chunks(chunk):
    index = np.arange(7)
    sees = np.tril(index[:, None] // chunk == index // chunk)
    node = hand.site(hand.uniform(7)).assign_coords(chunk=("layer", [float(chunk)]))
    node = hand.trace(self=node).children["self"]

    assert visible_queries(node).values.ravel().tolist() == sees.sum(0).tolist()
    assert visible_keys(node).values.ravel().tolist() == sees.sum(1).tolist()
    assert sees_first_key(node).values.ravel().tolist() == [
        bool(sees[query, 0] and query) for query in index
    ]


@pytest.mark.parametrize("site", ["self", "encoder"])
@pytest.mark.parametrize("last", [1, 3, 9])
def test_the_last_queries_are_counted_alone(site, last):
    index = np.arange(7)
    back = index[:, None] - index
    sees = (back >= 0 if site == "self" else True) & (abs(back) < 4)
    node = hand.site(hand.uniform(7), window=[4])
    node = hand.trace(**{site: node}).children[site]

    seen = visible_queries(node, last).values.ravel()
    assert seen.tolist() == sees[-last:].sum(0).tolist()


def test_texts_of_a_batch_have_their_own_length_where_only_keys_are_captured():
    length = ("sample", [5, 3])
    node = xr.Dataset(coords={"key": np.arange(5), "key_length": length})
    seen = visible_queries(hand.trace(self=node).children["self"])

    assert seen.transpose("sample", "key").values.tolist() == [
        [5, 4, 3, 2, 1],
        [3, 2, 1, 0, 0],
    ]


def test_keys_of_cross_attention_are_seen_by_all_queries_however_many_there_are():
    node = xr.Dataset(coords={"query": np.arange(3), "key": np.arange(8)})
    seen = visible_queries(hand.trace(cross=node).children["cross"])

    assert seen.values.ravel().tolist() == [3] * 8


def test_padded_samples_count_only_their_own_queries():
    node = hand.site(hand.uniform(5)).assign_coords(query_length=("sample", [5, 3]))
    seen = visible_queries(hand.trace(self=node).children["self"]).squeeze("layer")

    assert seen.transpose("sample", "key").values.tolist() == [
        [5, 4, 3, 2, 1],
        [3, 2, 1, 0, 0],
    ]


def test_queries_of_cross_attention_are_not_guessed_from_its_keys():
    node = hand.site(hand.uniform(9))[["received"]]

    assert SinksAnywhere()(hand.trace(self=node)).item() > 0
    with pytest.raises(NotCapturedError, match="site cross"):
        SinksAnywhere(site="cross")(hand.trace(cross=node))
