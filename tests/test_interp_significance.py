import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, permutation_test

from interp.significance import FLIPS, holm, sign_flip_p


def pairs(*rows):
    """Changes (head, item), a row for each head."""
    return xr.DataArray(np.array(rows, dtype=float), dims=("head", "item"))


def test_three_equal_changes_leave_one_pattern_in_four():
    # All signs alike: 2 of the 8 patterns.
    assert sign_flip_p(pairs([1, 1, 1]), "item").values.tolist() == [0.25]


def test_changes_that_cancel_are_no_evidence():
    assert sign_flip_p(pairs([1, -1], [0, 0]), "item").values.tolist() == [1, 1]


def test_missing_pairs_are_left_out():
    p = sign_flip_p(pairs([1, 1, np.nan, 1], [np.nan] * 4), "item").values
    assert p[0] == 0.25
    assert np.isnan(p[1])


def test_equals_are_counted_though_their_sums_round_differently():
    # 0.1 + 0.2 is not 0.3 in binary, yet flipping is symmetric.
    assert sign_flip_p(pairs([0.1, 0.2, -0.3]), "item").values.tolist() == [1]


def test_all_patterns_agree_with_scipy():
    sample = np.random.default_rng(0).normal(0.4, 1, size=11)
    theirs = permutation_test(
        (sample,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(pairs(sample), "item").item() == pytest.approx(theirs.pvalue)


def test_drawn_patterns_come_near_all_of_them_and_repeat():
    sample = np.random.default_rng(1).normal(0.5, 1, size=16)
    theirs = permutation_test(
        (sample,), np.mean, permutation_type="samples", n_resamples=2**17
    ).pvalue
    ours = sign_flip_p(pairs(sample), "item")
    assert ours.item() == pytest.approx(theirs, abs=0.01)
    xr.testing.assert_identical(ours, sign_flip_p(pairs(sample), "item"))


def test_no_p_is_zero():
    p = sign_flip_p(pairs(np.ones(40)), "item").item()
    assert p == pytest.approx(1 / (FLIPS + 1))


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_where_nothing_happens_no_more_is_found_than_the_level(n, level):
    changes = pairs(*np.random.default_rng(n).standard_t(3, (300, n)))
    found = float((sign_flip_p(changes, "item") <= level).mean())
    # Three standard deviations of a share of 300.
    assert level / 3 <= found <= level + 3 * np.sqrt(level * (1 - level) / 300)


def test_holm_by_hand():
    p = xr.DataArray([0.01, 0.04, 0.03, np.nan], dims="test")
    # Sorted: 3 x 0.01, 2 x 0.03, and 0.04 raised to the one before it.
    assert holm(p).values[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm(p).values[3])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(values):
    p = np.array(values)
    adjusted = holm(xr.DataArray(p, dims="test")).values
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-15).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_holm_is_stricter_than_a_false_discovery_rate():
    p = np.random.default_rng(0).uniform(0, 0.2, size=12)
    adjusted = holm(xr.DataArray(p, dims="test")).values
    assert (adjusted >= false_discovery_control(p) - 1e-15).all()
