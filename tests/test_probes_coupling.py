"""Peaks that meet by chance or not: by hand, in loops, and against all that chance is.

Links are checked on random curves with undefined ends, as FAI has them.
"""

from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import hypergeom

from interp.errors import InputError
from interp.probes.coupling import Coupling, couplings, largest, over_texts
from interp.probes.reading import Bootstrap

NAN = np.nan


def curves(seed, n_tokens=60, undefined=10):
    """Random peaks, FAI that is undefined at the end, and an entropy."""
    rng = np.random.default_rng(seed)
    fai = rng.random((2, n_tokens))
    fai[0, n_tokens - undefined :] = NAN
    fai_peak = np.stack([largest(row, 0.2) for row in fai])
    receiver = np.where(np.isfinite(fai), rng.random(fai.shape), NAN)
    return xr.Dataset(
        {
            "waad_peak": ("token", rng.random(n_tokens) < 0.3),
            "fai": (("horizon", "token"), fai),
            "fai_peak": (("horizon", "token"), fai_peak),
            "receiver_peak": (
                ("horizon", "token"),
                np.stack([largest(row, 0.2) for row in receiver]),
            ),
            "entropy": ("token", rng.gamma(2.0, size=n_tokens)),
        },
        {"horizon": np.array(["10-50", "0-end"], dtype=object)},
    )


def by_loops(own, n):
    """Observed and expected of the three links at one horizon, one loop each."""
    waad, fai = own["waad_peak"].values, own["fai"].values[n]
    fai_peak, receiver = own["fai_peak"].values[n], own["receiver_peak"].values[n]
    entropy = own["entropy"].values
    at_peaks = [entropy[t] for t in range(len(waad)) if waad[t]]
    defined = [t for t in range(len(fai)) if not np.isnan(fai[t])]
    among = [fai_peak[t] for t in defined if receiver[t]]
    follows = {t for t in defined if waad[t] or (t > 0 and waad[t - 1])}
    hits = [t in follows for t in defined if fai_peak[t]]
    return [
        (np.mean(at_peaks), np.mean(entropy)),
        (np.mean(among), np.mean([fai_peak[t] for t in defined])),
        (np.mean(hits), len(follows) / len(defined)),
    ]


def test_the_largest_share_of_those_that_have_a_value():
    assert largest(np.array([3, 1, NAN, 2, 5.0]), 0.5).tolist() == [1, 0, 0, 0, 1]
    assert largest(np.array([1, 1, 1, 1.0]), 0.5).tolist() == [1, 1, 0, 0]
    assert largest(np.array([NAN, 2.0]), 0.01).tolist() == [0, 1]
    assert not largest(np.array([NAN, NAN]), 0.4).any()


def test_a_peak_is_a_large_value_or_one_above_its_neighbours():
    curve = np.array([9, 1, 3, 2, 8, 8, 0, NAN, 4, 1.0])

    quantile = Coupling(share=0.3).find(curve)
    assert np.flatnonzero(quantile).tolist() == [0, 4, 5]
    # An end is no peak; of a plateau its middle is; what is undefined is below all.
    assert np.flatnonzero(Coupling("maxima").find(curve)).tolist() == [2, 4, 8]


@pytest.mark.parametrize("seed", range(6))
def test_every_link_is_that_of_its_loop(seed):
    own = curves(seed)
    found = couplings(own, Coupling(draws=200))

    for n in range(2):
        for link, (observed, expected) in enumerate(by_loops(own, n)):
            one = found.isel(link=link, horizon=n)
            assert one["observed"].item() == pytest.approx(observed)
            assert one["expected"].item() == pytest.approx(expected)
            assert one["lift"].item() == pytest.approx(observed / expected - 1)
            off = abs(one["drawn"].values - expected) - abs(observed - expected)
            assert one["p"].item() == ((off >= -1e-12).sum() + 1) / 201


def test_a_lift_by_hand():
    # FAI peaks are tokens 1 and 4, WAAD peaks 0 and 2: of the five tokens that have
    # FAI, 0, 1, 2 and 3 are at or right after one. So is one of two peaks.
    own = xr.Dataset(
        {
            "waad_peak": ("token", np.array([1, 0, 1, 0, 0, 0], dtype=bool)),
            "fai": (("horizon", "token"), np.array([[0, 1, 0, 0, 1, NAN]])),
            "fai_peak": (
                ("horizon", "token"),
                np.array([[0, 1, 0, 0, 1, 0]], dtype=bool),
            ),
            "receiver_peak": (
                ("horizon", "token"),
                np.array([[0, 0, 0, 0, 1, 0]], dtype=bool),
            ),
        },
        {"horizon": np.array(["0-end"], dtype=object)},
    )
    found = couplings(own, Coupling(draws=9)).isel(horizon=0)

    assert found["observed"].isnull().values.tolist() == [True, False, False]
    assert found["observed"].values[1:].tolist() == [1, 0.5]
    assert found["expected"].values[1:].tolist() == [2 / 5, 4 / 5]
    assert found["lift"].values[1:] == pytest.approx([1.5, -0.375])


def test_shuffled_marks_fall_on_every_set_of_tokens_alike():
    value = np.array([1, 0, 0, 1, 1, 0, 0.0])
    marked = np.array([1, 1, 1, 0, 0, 0, 0], dtype=bool)
    observed, expected, drawn = Coupling(draws=4000)(marked, value)

    assert observed == pytest.approx(1 / 3)
    assert expected == pytest.approx(3 / 7)
    possible = [np.mean(value[list(each)]) for each in combinations(range(7), 3)]
    assert set(np.round(drawn * 3)) == set(np.round(np.array(possible) * 3))
    counts = np.bincount(np.round(drawn * 3).astype(int), minlength=4) / 4000
    wanted = hypergeom.pmf(np.arange(4), 7, 3, 3)
    assert counts == pytest.approx(wanted, abs=5 * 0.5 / np.sqrt(4000))


def test_a_shift_keeps_the_distances_between_marks():
    rng = np.random.default_rng(0)
    value, marked = rng.random(9), np.zeros(9, dtype=bool)
    marked[[2, 3, 7]] = True
    _, _, drawn = Coupling(null="shift", draws=300)(marked, value)

    rolled = [np.roll(value, step)[marked].mean() for step in range(9)]
    assert {round(each, 12) for each in drawn} == {round(each, 12) for each in rolled}


def test_what_follows_by_design_is_sure_and_what_does_not_is_not():
    peaks = np.zeros(300, dtype=bool)
    peaks[5::10] = True

    planted = curves(0, 300).assign(waad_peak=("token", peaks))
    after = np.stack([np.roll(peaks, 1)] * 2) & planted["fai"].notnull().values
    planted["fai_peak"] = (("horizon", "token"), after)
    found = couplings(planted, Coupling(draws=99)).sel(link="follows")
    assert found["observed"].values.tolist() == [1, 1]
    assert found["p"].values.tolist() == [0.01, 0.01]

    # Without any coupling, a p is as often below any level as the level says.
    few = Coupling(draws=19)
    p = np.array([couplings(curves(s, 80), few)["p"].values for s in range(30)])
    for level in (0.2, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.15)


def test_several_texts_have_the_lift_of_their_means():
    texts = xr.concat([couplings(curves(s), Coupling(draws=50)) for s in range(4)], "c")
    texts = texts.rename(c="chain")
    found = over_texts(texts, Bootstrap(resamples=300))

    observed, expected = (texts[n].mean("chain") for n in ("observed", "expected"))
    xr.testing.assert_allclose(
        found["mean_lift"], observed / expected - 1, check_dim_order=False
    )
    drawn = texts["drawn"].mean("chain")
    off = abs(drawn - expected) >= abs(observed - expected) - 1e-12 * expected
    wanted = (off.sum("draw") + 1) / 51
    np.testing.assert_allclose(found["mean_p"], wanted.transpose("link", "horizon"))
    low, high = found["lift_interval"].transpose("bound", ...).values
    assert (low <= found["mean_lift"]).all()
    assert (found["mean_lift"] <= high).all()


def test_equal_texts_are_sure_of_their_lift_and_one_text_is_not():
    one = couplings(curves(3), Coupling(draws=20))
    alike = xr.concat([one] * 3, "chain")
    bounds = over_texts(alike, Bootstrap(resamples=50))["lift_interval"]

    np.testing.assert_allclose(bounds, one["lift"].broadcast_like(bounds))
    single = over_texts(one.expand_dims("chain"), Bootstrap(resamples=50))
    assert single["lift_interval"].isnull().all()
    np.testing.assert_allclose(single["mean_lift"], one["lift"])


def test_a_text_that_says_nothing_is_left_out_of_the_mean():
    one = couplings(curves(1), Coupling(draws=20))
    without = couplings(curves(2).drop_vars("entropy"), Coupling(draws=20))
    found = over_texts(xr.concat([one, without], "chain"), Bootstrap(resamples=20))

    entropy = found["mean_observed"].sel(link="entropy")
    np.testing.assert_allclose(entropy, one["observed"].sel(link="entropy"))


def test_draws_are_the_same_in_every_run_and_others_for_every_seed_and_text():
    def drawn(text, **options):
        return couplings(curves(text), Coupling(draws=20, **options))["drawn"].values

    np.testing.assert_array_equal(drawn(0), drawn(0))
    assert not np.array_equal(drawn(0), drawn(0, seed=1))
    assert not np.array_equal(drawn(1), drawn(0))


def test_nothing_that_is_marked_says_nothing():
    nothing = np.zeros(5, dtype=bool)
    observed, expected, drawn = Coupling(draws=3)(nothing, np.arange(5.0))
    assert np.isnan([observed, expected, *drawn]).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share": 1.0}, "share=1.0"),
        ({"draws": 0}, "draws=0"),
    ],
)
def test_options_without_meaning_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        Coupling(**options)
