import hand_traces as hand
import numpy as np
import pandas as pd
import pytest

from interp.errors import NotCapturedError
from interp.probes.activations import (
    RUN_COLUMNS,
    MassiveActivations,
    massive_cells,
    runs,
)

# Two tokens, six layers of the stream. Channel 5 of token 0 is written by the MLP of
# block 1, grows a little by the attention of block 2, and is erased by block 3.
MAXIMUM = [[1, 1], [2, 1], [2000, 1], [2100, 1], [3, 1], [3, 1]]
CHANNEL = [[0, 1], [0, 1], [5, 1], [5, 1], [0, 1], [0, 1]]
ATTENTION = [[np.nan, np.nan], [1, 0], [4, 0], [100, 0], [0, 0], [0, 0]]
MLP = [[np.nan, np.nan], [1, 0], [-1996, 0], [0, 0], [2090, 0], [0, 0]]
TOP = [(2, -2000, 0, 5), (3, -2100, 0, 5), (3, 1500, 0, 7), (3, 3, 1, 1)]


def written(**changes):
    """A trace of that residual stream."""
    arrays = {
        "maximum": MAXIMUM,
        "channel": CHANNEL,
        "median_all": np.ones(6),
        "attention_write": ATTENTION,
        "mlp_write": MLP,
        "top": TOP,
        **changes,
    }
    return hand.trace(residual=hand.residual(**arrays))


def test_massive_means_above_the_floor_and_far_above_the_median():
    massive = MassiveActivations()(written())

    assert massive.dims == ("layer_residual", "token")
    assert massive.values.astype(int).tolist() == [
        [0, 0],
        [0, 0],
        [1, 0],
        [1, 0],
        [0, 0],
        [0, 0],
    ]


@pytest.mark.parametrize(
    ("value", "median", "massive"),
    [(1000, 1, True), (999, 1, False), (-1000, 1, True), (100, 0.01, False)],
)
def test_the_ratio_is_reached_and_the_floor_exceeded(value, median, massive):
    trace = hand.trace(residual=hand.residual([[value]], [[0]], [median]))

    assert MassiveActivations()(trace).item() is massive


def test_a_looser_ratio_finds_a_smaller_step():
    trace = hand.trace(residual=hand.residual([[150]], [[0]], [1]))

    assert not MassiveActivations()(trace).item()
    assert MassiveActivations(ratio=100)(trace).item()


def test_cells_hold_a_second_channel_and_the_sign_where_it_is_known():
    cells = massive_cells(written())

    assert cells.to_dict("list") == {
        "layer": [2, 3, 3],
        "token": [0, 0, 0],
        "channel": [5, 5, 7],
        "magnitude": [2000, 2100, 1500],
        "sign": [-1, -1, 1],
    }


def test_a_cell_outside_the_largest_of_its_layer_has_no_sign():
    cells = massive_cells(written(top=[]))

    assert cells["sign"].tolist() == [0, 0]


def test_a_run_says_where_a_cell_is_massive_and_who_wrote_it():
    table = runs(written())

    assert tuple(table.columns) == RUN_COLUMNS
    assert table.iloc[0].to_dict() == {
        "channel": 5,
        "token": 0,
        "token_text": "t0",
        "first_layer": 2,
        "last_layer": 3,
        "peak_layer": 3,
        "peak": 2100,
        "sign": -1,
        "writer_block": 1,
        "writer_half": "mlp",
        "share": 1996 / 2100,
    }


def test_the_writer_of_a_second_channel_is_unknown():
    second = runs(written()).iloc[1]

    assert (second["channel"], second["sign"]) == (7, 1)
    assert second["writer_block"] is pd.NA
    assert second["writer_half"] == ""
    assert np.isnan(second["share"])


def test_attention_can_be_the_writer():
    table = runs(written(attention_write=MLP, mlp_write=ATTENTION))

    assert table.iloc[0]["writer_half"] == "attention"


def test_without_a_sign_the_larger_write_is_the_writer():
    table = runs(written(top=[]))

    assert (table.iloc[0]["writer_block"], table.iloc[0]["writer_half"]) == (1, "mlp")
    assert table.iloc[0]["share"] == 1996 / 2100


def test_a_cell_that_returns_is_two_runs_the_larger_first():
    maximum = [[1], [1500], [1], [2000]]
    trace = hand.trace(residual=hand.residual(maximum, np.zeros((4, 1)), np.ones(4)))
    table = runs(trace)

    assert table[["first_layer", "last_layer"]].values.tolist() == [[3, 3], [1, 1]]


def test_a_massive_embedding_has_no_writer():
    trace = hand.trace(residual=hand.residual([[5000]], [[3]], [1]))

    assert runs(trace).iloc[0]["writer_block"] is pd.NA


def test_without_massive_activations_the_table_is_empty():
    table = runs(hand.trace(residual=hand.residual([[5]], [[3]], [1])))

    assert table.empty
    assert tuple(table.columns) == RUN_COLUMNS


def test_nan_is_not_massive():
    trace = hand.trace(residual=hand.residual([[np.nan]], [[-1]], [np.nan]))

    assert not MassiveActivations()(trace).item()


def test_without_a_residual_stream_the_remedy_is_named():
    with pytest.raises(NotCapturedError, match=r"Capture\(residual=True\)"):
        runs(hand.trace(self=hand.site(hand.uniform(3))))
