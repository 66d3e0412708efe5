import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from interp.errors import InputError
from interp.uncertainty import block_means, bootstrap_interval


def over_texts(*columns):
    """Measurements (text, head), one column a head."""
    return xr.DataArray(np.array(columns, dtype=float).T, dims=("text", "head"))


def test_equal_measurements_give_an_interval_of_no_width():
    interval = bootstrap_interval(over_texts([3, 3, 3, 3]), "text")

    assert interval.dims == ("head", "bound")
    assert interval["bound"].values.tolist() == ["low", "high"]
    assert interval.values.tolist() == [[3, 3]]


def test_two_measurements_give_their_range():
    # A quarter of the resamples holds the smaller one only, and a quarter the larger.
    interval = bootstrap_interval(over_texts([0, 1]), "text")

    assert interval.values.tolist() == [[0, 1]]


def test_one_measurement_gives_no_interval():
    assert np.isnan(bootstrap_interval(over_texts([3]), "text").values).all()


def test_missing_measurements_are_left_out():
    full = bootstrap_interval(over_texts([2, 2, 2]), "text")
    missing = bootstrap_interval(over_texts([2, np.nan, 2]), "text")
    alone = bootstrap_interval(over_texts([2, np.nan, np.nan]), "text")

    xr.testing.assert_equal(full, missing)
    assert np.isnan(alone.values).all()


def test_the_interval_agrees_with_scipy():
    sample = np.random.default_rng(0).normal(size=40)
    theirs = bootstrap(
        (sample,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    ours = bootstrap_interval(over_texts(sample), "text", resamples=20_000)

    assert ours.values[0] == pytest.approx([theirs.low, theirs.high], abs=0.01)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=8),
    st.floats(-10, 10),
    st.integers(1, 5),
)
def test_shifting_and_scaling_measurements_does_so_to_the_interval(
    sample, shift, scale
):
    before = bootstrap_interval(over_texts(sample), "text", resamples=50)
    after = bootstrap_interval(
        over_texts(np.array(sample) * scale + shift), "text", resamples=50
    )

    np.testing.assert_allclose(after, before * scale + shift, atol=1e-9)
    assert (before.values >= min(sample) - 1e-9).all()
    assert (before.values <= max(sample) + 1e-9).all()


def test_the_same_seed_gives_the_same_interval():
    values = over_texts([1, 5, 2, 8, 3])

    xr.testing.assert_identical(
        bootstrap_interval(values, "text", seed=3),
        bootstrap_interval(values, "text", seed=3),
    )


def test_an_entry_of_weight_zero_does_not_count():
    values = over_texts([1, 3, 99])
    weights = xr.DataArray([1, 1, 0], dims="text")
    interval = bootstrap_interval(values, "text", weights=weights)

    assert interval.values.tolist() == [[1, 3]]


def test_a_heavier_measurement_pulls_the_interval():
    values = over_texts([0, 1, 0, 1, 0, 1])
    even = bootstrap_interval(values, "text")
    weights = xr.DataArray([1, 9, 1, 9, 1, 9], dims="text")
    pulled = bootstrap_interval(values, "text", weights=weights)

    assert (pulled > even).values[0, 0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dim": "layer"}, "'layer'"),
        ({"level": 1.5}, "1.5"),
        ({"resamples": 0}, "resamples=0"),
    ],
)
def test_meaningless_options_are_refused(options, named):
    with pytest.raises(InputError, match=named):
        bootstrap_interval(over_texts([1, 2]), **{"dim": "text", **options})


def test_blocks_are_contiguous_and_count_their_rows():
    rows = xr.DataArray([np.nan, 1, 3, 5, np.nan, 9], dims="query")
    means, counts = block_means(rows, blocks=2)

    assert means.values.tolist() == [2, 7]
    assert counts.values.tolist() == [2, 2]


def test_means_of_blocks_weigh_up_to_the_mean_of_rows():
    rows = xr.DataArray(
        np.random.default_rng(0).random((2, 3, 53)), dims=("layer", "head", "query")
    )
    means, counts = block_means(rows)

    assert means.sizes["block"] == 8
    np.testing.assert_allclose(
        means.weighted(counts.isel(layer=0, head=0)).mean("block"), rows.mean("query")
    )


def test_fewer_rows_than_blocks_give_fewer_blocks():
    means, _ = block_means(xr.DataArray([1.0, 2.0], dims="query"))
    nothing, _ = block_means(xr.DataArray([np.nan, np.nan], dims="query"))

    assert means.values.tolist() == [1, 2]
    assert np.isnan(bootstrap_interval(nothing, "block").values).all()
