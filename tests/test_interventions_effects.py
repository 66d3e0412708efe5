import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InputError
from interp.interventions import beats_chance, holm_together, paired_effects

CONTROLS = {"zero": ["c1", "c2", "c3"]}


def table(metric="nll", **rows):
    """A sweep's table, a row for each intervention, with the labels of its items."""
    values = np.array(list(rows.values()), dtype=float)
    items = [f"i{n}" for n in range(values.shape[1])]
    attrs = {"units": "nats", "long_name": "negative log-likelihood"}
    return xr.Dataset(
        {metric: (("intervention", "item"), values, attrs)},
        {
            "intervention": np.array(list(rows), dtype=object),
            "item": np.array(items, dtype=object),
            "length": ("item", np.arange(len(items))),
        },
    )


@pytest.fixture
def swept():
    return table(
        none=[1, 2, 3, 4],
        zero=[2, 4, 4, 6],
        c1=[1, 2, 3, 4],
        c2=[1, 3, 3, 5],
        c3=[0, 1, 2, 3],
    )


class TestPairedEffects:
    def test_every_number_by_hand(self, swept):
        one = paired_effects(swept, "nll", CONTROLS).sel(intervention="zero")
        assert one["effect"] == 1.5
        assert (one["base"], one["score"]) == (2.5, 4)
        assert one["control"].values.tolist() == [0, 0.5, -1]
        assert one["control_mean"] == pytest.approx(-1 / 6)
        assert (one["control_low"], one["control_high"]) == (-1, 0.5)
        assert one["p_control"] == 1 / 4
        assert one["p"] == one["p_holm"] == 2 / 16
        assert (one["n_items"], one["n_controls"]) == (4, 3)
        low, high = one["effect_interval"].values
        assert 1 <= low < 1.5 < high <= 2

    def test_units_sources_and_options_are_told(self, swept):
        effects = paired_effects(swept, "nll", CONTROLS, seed=3)
        assert effects.attrs["metric"] == "nll"
        assert effects.attrs["units"] == effects["effect"].attrs["units"] == "nats"
        assert "Holm 1979" in effects.attrs["source"]
        assert effects.attrs["seed"] == 3
        assert all(array.attrs["long_name"] for array in effects.values())
        assert set(effects.coords) == {"intervention", "bound"}

    def test_a_control_as_far_the_other_way_counts(self, swept):
        swept["nll"].loc["c3"] = swept["nll"].sel(intervention="none") - 1.5
        effects = paired_effects(swept, "nll", CONTROLS)
        assert effects["p_control"].item() == 2 / 4

    def test_without_controls_every_intervention_is_a_treatment(self, swept):
        effects = paired_effects(swept, "nll")
        assert effects["intervention"].values.tolist() == ["zero", "c1", "c2", "c3"]
        assert effects["p_control"].isnull().all()
        assert effects["control_mean"].isnull().all()
        assert (effects["n_controls"] == 0).all()
        assert (effects["p_holm"] >= effects["p"]).all()

    def test_treatments_may_have_different_numbers_of_controls(self, swept):
        effects = paired_effects(swept, "nll", {"zero": ["c1", "c2"], "c3": []})
        assert effects["n_controls"].values.tolist() == [2, 0]
        assert effects["control_high"].values[0] == 0.5

    def test_items_without_a_value_are_left_out(self, swept):
        swept["nll"][:, 3] = np.nan
        effects = paired_effects(swept, "nll", CONTROLS)
        assert effects["n_items"].item() == 3
        assert effects["effect"].item() == pytest.approx(4 / 3)
        assert effects["p"].item() == 0.25

    def test_a_single_item_has_no_interval(self, swept):
        effects = paired_effects(swept.isel(item=[0]), "nll", CONTROLS)
        assert effects["effect_interval"].isnull().all()
        assert effects["p"].item() == 1

    def test_rounding_is_no_change(self):
        swept = table(none=[3.0] * 8, zero=[3.0 + 1e-8] * 8)
        effects = paired_effects(swept, "nll")
        assert effects["effect"].item() == 0
        assert effects["p"].item() == 1

    @pytest.mark.parametrize("metric", ["kl", "agreement"])
    def test_what_compares_with_the_untouched_model_has_no_sign_to_flip(self, metric):
        swept = table(metric, none=[0, 0, 0], zero=[1, 2, 3], c=[1, 1, 1])
        effects = paired_effects(swept, metric, {"zero": ["c"]})
        assert effects["p"].isnull().all()
        assert effects["p_control"].item() == 0.5

    def test_names_that_the_table_lacks_are_refused(self, swept):
        with pytest.raises(InputError, match=r"'mean'; the table holds none, zero"):
            paired_effects(swept, "nll", {"mean": ["c1"]})
        with pytest.raises(InputError, match="'c9'"):
            paired_effects(swept, "nll", {"zero": ["c9"]})
        with pytest.raises(InputError, match=r"'exact'.*got nll"):
            paired_effects(swept, "exact")
        with pytest.raises(InputError, match="untouched model 'none'"):
            paired_effects(swept.drop_sel(intervention="none"), "nll")
        with pytest.raises(InputError, match="is a control"):
            paired_effects(swept, "nll", {"none": ["zero", "c1", "c2", "c3"]})

    @given(st.permutations(range(6)))
    def test_the_order_of_items_decides_nothing(self, order):
        rng = np.random.default_rng(0)
        swept = table(none=rng.normal(size=6), zero=rng.normal(size=6))
        effects = paired_effects(swept, "nll")
        turned = paired_effects(swept.isel(item=list(order)), "nll")
        assert turned["effect"].item() == pytest.approx(effects["effect"].item())
        assert turned["p"].item() == effects["p"].item()


class TestHolmTogether:
    def test_several_metrics_are_one_family(self, swept):
        effects = paired_effects(swept, "nll", CONTROLS)
        first, second = holm_together([effects, effects])
        assert first["p_holm"].item() == second["p_holm"].item() == 0.25
        assert effects["p_holm"].item() == 0.125

    def test_metrics_without_p_are_no_tests(self, swept):
        swept["kl"] = swept["nll"]
        found = [paired_effects(swept, each, CONTROLS) for each in ("nll", "kl")]
        assert holm_together(found)[0]["p_holm"].item() == 0.125
        assert holm_together([]) == []


class TestBeatsChance:
    def test_the_whole_interval_has_to_be_better(self):
        swept = table("exact", none=[1, 0, 0, 0, 0, 0])
        assert not beats_chance(swept, "exact", 0, is_better_high=True)
        swept = table("exact", none=[1, 1, 1, 0, 1, 1])
        assert beats_chance(swept, "exact", 0, is_better_high=True)
        assert not beats_chance(swept, "exact", 0.9, is_better_high=True)

    def test_a_low_value_is_better_where_the_task_says_so(self):
        swept = table(none=[3, 3.5, 4, 3])
        assert beats_chance(swept, "nll", 4.5, is_better_high=False)
        assert not beats_chance(swept, "nll", 3.4, is_better_high=False)

    def test_never_right_is_no_better_than_never(self):
        swept = table("exact", none=[0, 0, 0])
        assert not beats_chance(swept, "exact", 0, is_better_high=True)

    def test_one_item_is_judged_by_itself(self):
        assert beats_chance(table(none=[3]), "nll", 4, is_better_high=False)
        assert not beats_chance(table(none=[5]), "nll", 4, is_better_high=False)

    def test_effects_keep_it(self, swept):
        effects = paired_effects(swept, "nll", CONTROLS, interpretable=False)
        assert not effects["interpretable"].item()
