"""Whether detectors rank heads alike and choose the same ones."""

import json
from itertools import combinations, permutations

import numpy as np
import pytest
import xarray as xr
from hand_atlas import hand_atlas
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom, rankdata, spearmanr

from interp.errors import InputError
from interp.heads import HeadSet
from interp.probes.agreement import (
    agreement,
    comparable,
    intersections,
    overlap,
    top_sets,
)
from interp.probes.ranks import weighted_ranks
from interp.probes.reading import Bootstrap
from interp.significance import holm

FEW = Bootstrap(resamples=50)


def heads(**signals) -> xr.Dataset:
    """Signals over (layer, head)."""
    arrays = {
        name: xr.DataArray(np.asarray(values, dtype=float), dims=("layer", "head"))
        for name, values in signals.items()
    }
    return xr.Dataset(arrays)


def noise(n_layers=6, n_heads=4, seed=0, **others) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    size = (n_layers, n_heads)
    return heads(a=rng.normal(size=size), b=rng.normal(size=size), **others)


def pair(found: xr.Dataset, first="a", second="b") -> xr.Dataset:
    return found.sel(detector=first, other=second)


def left_out(found) -> dict[str, str]:
    return json.loads(found.attrs["left_out"])


class TestCorrelation:
    def test_the_same_order_is_one_and_the_opposite_minus_one(self):
        values = np.arange(12.0).reshape(3, 4)
        found = agreement(
            heads(a=values, b=values**3, c=-np.exp(values)), bootstrap=FEW
        )
        assert pair(found).rho == 1
        assert pair(found, "a", "c").rho == -1
        assert (np.diag(found.rho) == 1).all()

    def test_it_is_spearmans_with_ties_and_missing_heads(self):
        rng = np.random.default_rng(1)
        grid = rng.integers(0, 5, size=(4, 7, 6)).astype(float)
        grid[1, 2, 3] = grid[2, 0] = np.nan
        found = agreement(heads(**dict(zip("abcd", grid, strict=True))), bootstrap=FEW)
        for (i, first), (j, second) in combinations(enumerate("abcd"), 2):
            x, y = grid[i].ravel(), grid[j].ravel()
            known = ~np.isnan(x + y)
            here = pair(found, first, second)
            assert here.rho.item() == pytest.approx(spearmanr(x[known], y[known])[0])
            assert here.n_heads == known.sum()

    def test_it_is_symmetric_and_ignores_what_is_not_over_heads(self):
        found = agreement(hand_atlas(5, 4, 2, tokens=60, texts=2)["heads"].to_dataset())
        for name in ("rho", "rho_within", "p", "p_holm", "n_heads"):
            np.testing.assert_array_equal(found[name], found[name].T)
        assert not any("_interval" in name for name in found["detector"].values)
        assert "sinks" in found["detector"].values

    def test_monotone_changes_of_units_change_nothing(self):
        data = noise()
        other = data.assign(a=np.exp(data["a"]) * 1e6)
        xr.testing.assert_identical(
            agreement(data, bootstrap=FEW), agreement(other, bootstrap=FEW)
        )

    def test_what_depth_alone_does_is_gone_within_layers(self):
        depth = 100.0 * np.arange(8)[:, None]
        data = noise(8, 5)
        found = agreement(data + depth, bootstrap=FEW)
        alone = [rankdata(data[name], axis=1) for name in "ab"]
        inside = [(ranks - 3).ravel() for ranks in alone]
        assert pair(found).rho > 0.9
        assert pair(found).rho_within.item() == pytest.approx(
            np.corrcoef(*inside)[0, 1]
        )

    def test_a_pair_without_common_heads_is_unknown(self):
        a, b = np.full((2, 2, 3), np.nan)
        a[0], b[1] = [1, 2, 3], [3, 1, 2]
        found = agreement(heads(a=a, b=b), bootstrap=FEW)
        assert pair(found).n_heads == 0
        assert all(np.isnan(pair(found)[name]) for name in ("rho", "p", "p_holm"))


class TestInterval:
    @given(
        st.lists(st.integers(0, 4), min_size=2, max_size=9),
        st.lists(st.integers(0, 3), min_size=9, max_size=9),
    )
    def test_weighted_ranks_are_those_of_the_repeated_values(self, values, weights):
        weights = np.array(weights[: len(values)])
        signal = np.array(values, dtype=float)
        ranks = weighted_ranks(signal[None], weights[None].astype(float))[0, 0]
        repeated = rankdata(np.repeat(signal, weights))
        np.testing.assert_array_equal(np.repeat(ranks, weights), repeated)

    def test_it_resamples_whole_layers(self):
        data, how = noise(7, 5, seed=3), Bootstrap(resamples=40, seed=5)
        drawn = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), 40)
        each = [
            spearmanr(
                *(np.repeat(data[name].values, counts, axis=0).ravel() for name in "ab")
            )[0]
            for counts in drawn
        ]
        bounds = pair(agreement(data, bootstrap=how)).rho_interval
        assert bounds.values == pytest.approx(np.quantile(each, [0.025, 0.975]))

    def test_layers_that_are_alike_inside_give_a_wider_one(self):
        rng = np.random.default_rng(0)
        of_layer = rng.normal(size=(2, 20, 1))
        alike = of_layer + 0.01 * rng.normal(size=(2, 20, 8))
        apart = rng.permuted(alike.reshape(2, -1), axis=1).reshape(2, 20, 8)
        widths = [
            np.ptp(pair(agreement(heads(a=a, b=b))).rho_interval.values)
            for a, b in (alike, apart)
        ]
        assert widths[0] > 1.5 * widths[1]

    def test_a_single_layer_has_none(self):
        found = agreement(heads(a=[[1, 2, 3]], b=[[3, 1, 2]]), bootstrap=FEW)
        assert pair(found).rho_interval.isnull().all()
        assert pair(found).p == 1

    def test_the_same_seed_gives_the_same_bits(self):
        first, again = (agreement(noise(), bootstrap=FEW) for _ in range(2))
        xr.testing.assert_identical(first, again)


class TestChance:
    def test_all_orders_of_few_layers_are_counted(self):
        data = noise(4, 3, seed=2)
        a, b = (data[name].values for name in "ab")
        observed = abs(spearmanr(a.ravel(), b.ravel())[0])
        each = [
            abs(spearmanr(a.ravel(), b[list(order)].ravel())[0])
            for order in permutations(range(4))
        ]
        expected = np.mean(np.array(each) >= observed - 1e-12)
        assert pair(agreement(data, bootstrap=FEW)).p.item() == pytest.approx(expected)

    def test_where_nothing_happens_no_more_is_found_than_the_level(self):
        # Heads of a layer share most of their value: heads are no samples.
        rng = np.random.default_rng(4)
        grid = rng.normal(size=(16, 12, 1)) + 0.3 * rng.normal(size=(16, 12, 6))
        names = [f"d{i}" for i in range(16)]
        found = agreement(heads(**dict(zip(names, grid, strict=True))), bootstrap=FEW)
        p = found.p.values[np.triu_indices(16, 1)]
        by_heads = [
            spearmanr(x.ravel(), y.ravel())[1] for x, y in combinations(grid, 2)
        ]
        # Three standard deviations of a share of 120.
        assert np.mean(p <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)
        assert np.mean(np.array(by_heads) <= 0.05) > 0.3

    def test_p_is_corrected_over_all_pairs_once(self):
        found = agreement(noise(c=np.arange(24.0).reshape(6, 4)), bootstrap=FEW)
        pairs = list(combinations("abc", 2))
        p = xr.DataArray([pair(found, *each).p.item() for each in pairs], dims="pair")
        corrected = [pair(found, *each).p_holm.item() for each in pairs]
        assert corrected == pytest.approx(holm(p).values.tolist())
        assert np.isnan(np.diag(found.p_holm)).all()


class TestLeftOut:
    def test_labels_constants_and_unknown_signals_say_why(self):
        data = noise(zero=np.zeros((6, 4)), nothing=np.full((6, 4), np.nan))
        data["label"] = data["a"].round().assign_attrs(units="label")
        data["flags"] = data["a"].round().assign_attrs(flag_values=[0, 1])
        kept, reasons = comparable(data)
        assert list(kept) == ["a", "b"]
        assert reasons == {
            "label": "it is a label, not a quantity",
            "flags": "it is a label, not a quantity",
            "zero": "it is 0 at every head",
            "nothing": "it has no value at any head",
        }
        assert left_out(agreement(data, bootstrap=FEW)) == reasons
        assert overlap(data).attrs["left_out"] == reasons

    def test_infinite_values_count_as_missing(self):
        data = noise()
        data["a"][0, 0] = np.inf
        assert pair(agreement(data, bootstrap=FEW)).n_heads == 23

    def test_too_few_signals_are_refused_with_what_is_missing(self):
        with pytest.raises(InputError, match=r"got a \(left out: zero: it is 0"):
            agreement(heads(a=[[1, 2]], zero=[[0, 0]]))
        with pytest.raises(InputError, match="got none"):
            agreement(xr.Dataset())

    def test_a_set_that_ends_among_equals_is_left_out(self):
        sparse = np.zeros((4, 5))
        sparse[0, 0] = 1
        sets, reasons = top_sets(heads(a=np.eye(4, 5), b=sparse), share=0.2)
        assert str(sets["a"]) == "L0.H0,L1.H1,L2.H2,L3.H3"
        assert reasons == {"b": "its largest 20% end among 19 heads of equal value"}


class TestOverlap:
    # Five heads of a layer: a and b share two of their three largest.
    BY_HAND = heads(a=[[9, 8, 7, 1, 0]], b=[[8, 9, 0, 7, 1]])

    def test_by_hand(self):
        (row,) = overlap(self.BY_HAND, share=0.6).to_dict("records")
        assert (row["size"], row["other_size"], row["overlap"]) == (3, 3, 2)
        assert row["expected"] == pytest.approx(9 / 5)
        assert row["expected_within"] == pytest.approx(9 / 5)
        assert row["jaccard"] == 2 / 4
        # Of the 10 triples, 6 share two with a given one, and 1 all three.
        assert row["p"] == pytest.approx(7 / 10)

    def test_intersections_by_hand(self):
        table = intersections(self.BY_HAND, share=0.6)
        assert table["detectors"].tolist() == [("a", "b"), ("a",), ("b",)]
        assert table["heads"].tolist() == ["L0.H0,L0.H1", "L0.H2", "L0.H3"]

    def test_intersections_add_up_to_the_sets_and_to_the_pairs(self):
        data = hand_atlas(8, 6, 2, tokens=60)["heads"].to_dataset()
        sets, _ = top_sets(data, 0.2)
        table = intersections(data, 0.2)
        for name, top in sets.items():
            assert top == HeadSet.top(data[name], share=0.2)
            inside = [name in members for members in table["detectors"]]
            assert table.loc[inside, "size"].sum() == len(top)
        union = {head for top in sets.values() for head in top}
        assert table["size"].sum() == len(union)
        for row in overlap(data, 0.2).to_dict("records"):
            both = {row["detector"], row["other"]}
            inside = [both <= set(members) for members in table["detectors"]]
            assert table.loc[inside, "size"].sum() == row["overlap"]

    def test_expectation_and_p_are_those_of_random_sets(self):
        rng = np.random.default_rng(0)
        data = heads(a=np.arange(30.0).reshape(5, 6), b=rng.normal(size=(5, 6)))
        (row,) = overlap(data, 0.2).to_dict("records")
        drawn = [len(set(rng.permutation(30)[:6]) & set(range(6))) for _ in range(4000)]
        error = np.std(drawn) / np.sqrt(len(drawn))
        assert abs(np.mean(drawn) - row["expected"]) < 4 * error
        assert row["p"] == hypergeom.sf(row["overlap"] - 1, 30, 6, 6)

    def test_sets_in_one_layer_meet_by_chance_within_it(self):
        last = np.zeros((5, 6))
        last[4] = np.arange(6) + 1
        data = noise(5, 6).assign(a=heads(a=last)["a"] + 0.01 * noise(5, 6)["a"])
        data["b"] = heads(b=last[:, ::-1])["b"] + 0.01 * noise(5, 6)["b"]
        (row,) = overlap(data, 0.1).to_dict("records")
        assert row["expected"] == pytest.approx(3 * 3 / 30)
        assert row["expected_within"] == pytest.approx(3 * 3 / 6)

    def test_only_heads_with_both_values_count(self):
        a, b = np.random.default_rng(0).normal(size=(2, 4, 5))
        a[0, :3], b[3, 4] = np.nan, np.nan
        (row,) = overlap(heads(a=a, b=b), 0.25).to_dict("records")
        assert row["n_heads"] == 16
        assert row["size"] <= 4

    def test_fewer_than_two_sets_make_no_pair(self):
        assert overlap(heads(a=[[1, 2]])).empty
        assert intersections(xr.Dataset()).empty

    def test_a_share_that_is_none_is_refused(self):
        with pytest.raises(InputError, match=r"5% as 0\.05"):
            overlap(self.BY_HAND, share=5)


def test_the_store_keeps_it(tmp_path):
    found = agreement(noise(), bootstrap=FEW)
    found.to_zarr(tmp_path / "agreement.zarr", consolidated=False)
    kept = xr.open_zarr(tmp_path / "agreement.zarr", consolidated=False).load()
    xr.testing.assert_equal(found, kept)
    assert (
        kept.attrs["interval"] == "95% percentile bootstrap over layers, 50 resamples"
    )
