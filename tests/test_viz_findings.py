import numpy as np
import pytest
import xarray as xr
from hand_atlas import encoder_atlas, hand_atlas

from interp.viz.findings import findings
from interp.viz.tables import massive_cells, sink_tokens, strongest


def atlas_of(**heads):
    arrays = {
        name: xr.DataArray(
            np.asarray(value, dtype=float),
            dims=("layer", "head"),
            attrs={"units": "fraction"},
        )
        for name, value in heads.items()
    }
    atlas = xr.DataTree.from_dict({"heads": xr.Dataset(arrays)})
    atlas.attrs["epsilon"] = 0.3
    return atlas


@pytest.fixture(scope="module")
def text():
    return hand_atlas(12, 4, 2, tokens=80)["text_0"].to_dataset()


def test_heads_that_sink_are_counted_and_the_first_crowded_layer_named():
    (found,) = findings(atlas_of(sinks=[[0.1, 0.4], [0.2, 0.1], [0.5, 0.9]]))
    assert found.headline == "3 of 6 heads"
    assert "50\u00a0% of the heads give more than 30\u00a0%" in found.sentence
    assert "at least half of the heads do is 0" in found.sentence


def test_no_sink_is_also_a_finding():
    (found,) = findings(atlas_of(sinks=[[0.1, 0.25], [0.2, 0.1]]))
    assert found.headline == "0 of 4 heads"
    assert "largest share is 25\u00a0%, in L0.H1" in found.sentence


def test_heads_without_a_value_are_not_counted():
    (found,) = findings(atlas_of(sinks=[[0.5, np.nan]]))
    assert found.headline == "1 of 1 heads"


def test_induction_heads_are_counted():
    (found,) = findings(atlas_of(induction=[[0.1, 0.94], [0.4, 0.0]]))
    assert found.headline == "2 induction heads"
    assert "L0.H1 gives 94\u00a0%" in found.sentence


def test_the_massive_activation_is_named_with_channel_layers_and_writer():
    found = findings(hand_atlas(30, 9, 3, tokens=80))[1]
    assert found.section == "activations"
    assert "Channel 507 of token 0" in found.sentence
    assert "hidden states 12\N{EN DASH}28" in found.sentence
    assert "MLP of block 11" in found.sentence


def test_an_atlas_of_unknown_numbers_has_no_finding():
    assert findings(atlas_of(sinks=[[np.nan]], induction=[[np.nan]])) == []
    assert findings(xr.DataTree()) == []


def test_an_encoders_signed_distance_is_no_headline():
    atlas = encoder_atlas()
    atlas["heads"]["distance"].attrs["site"] = "encoder"
    assert findings(atlas) == []


def test_strongest_heads_come_in_order_and_stop_at_zero():
    array = xr.DataArray([[0.0, 0.5], [0.9, np.nan]], dims=("layer", "head"))
    rows = strongest(array, None)
    assert [row.name for row in rows] == ["L1.H0", "L0.H1"]
    assert [row.place for row in rows] == pytest.approx([100, 55.6])
    assert rows[0].low is None


def test_a_bar_has_room_for_its_interval():
    array = xr.DataArray([[0.5]], dims=("layer", "head"))
    bounds = xr.DataArray([[[0.4, 1.0]]], dims=("layer", "head", "bound"))
    (row,) = strongest(array, bounds)
    assert (row.place, row.low, row.high) == (50, 40, 100)
    assert row.interval == "0.400 to 1.00"


def test_sink_tokens_come_by_share_then_by_mass(text):
    rows = sink_tokens(text)
    assert rows[0].position == 0
    assert [row.share for row in rows] == sorted((r.share for r in rows), reverse=True)
    assert {12, 29, 61} <= {row.position for row in rows[:4]}
    assert rows[0].followers == 79


def test_tokens_near_the_end_are_no_sinks_for_being_seen_by_few(text):
    text = text.copy(deep=True)
    text["received"][:, 70] = 0.9
    assert 70 not in [row.position for row in sink_tokens(text)]
    text["sink_share"][3, 70] = 0.5
    assert 70 in [row.position for row in sink_tokens(text)]


def test_massive_cells_say_where_they_are_strictly_so(text):
    cell = massive_cells(text)[0]
    assert (cell.position, cell.channel) == (0, 507)
    assert cell.strict == "5\N{EN DASH}10"
    assert cell.writer == "MLP of block 4"
    assert cell.peak == pytest.approx(22_500)


def test_a_text_without_its_residual_stream_has_no_massive_cells(text):
    assert massive_cells(text.drop_vars("top_value")) == []
    assert sink_tokens(text.drop_vars("sink_share")) == []
