import numpy as np
import pytest
import xarray as xr

from interp.errors import InputError
from interp.probes.contexts import activity, universality

NEEDLE = [0, 0, 1, 1, 1]


def scores(rows):
    """Runs of one layer of heads; a row of None is one that does not count."""
    n = max(len(row) for row in rows if row)
    values = np.array([row or [np.nan] * n for row in rows], dtype=float)[:, None]
    coords = {"retrieval_seed": ("retrieval_run", NEEDLE[: len(rows)])}
    dims = ("retrieval_run", "layer", "head")
    return xr.DataArray(values, coords, dims=dims, name="retrieval_runs")


RUNS = scores(
    [
        [0.9, 0.4, 0.1, 0.0, 0.2],
        [0.7, 0.0, 0.0, 0.0, 0.2],
        [0.8, 0.5, 0.1, 0.0, 0.0],
        [0.6, 0.7, 0.0, 0.0, 0.0],
        None,
    ]
)


def test_heads_are_active_in_all_some_or_no_runs():
    found = activity(RUNS)

    assert found["frequency"].values.tolist() == [[1, 0.75, 0.5, 0, 0.5]]
    kinds = ["strong", "dynamic", "weak", "none", "dynamic"]
    assert found["kind"].values.tolist() == [kinds]


def test_a_head_without_any_run_is_of_no_kind():
    found = activity(RUNS.where(RUNS["head"] != 0))

    assert found["frequency"].isnull().sum() == 1
    assert found["kind"].values[0, 0] == ""


def test_parts_are_compared_by_their_maps():
    found = universality(RUNS)

    np.testing.assert_allclose(found["score"].sel(part=0), [[0.8, 0.2, 0.05, 0, 0.2]])
    np.testing.assert_allclose(found["score"].sel(part=1), [[0.7, 0.6, 0.05, 0, 0]])
    expected = np.corrcoef([0.8, 0.2, 0.05, 0, 0.2], [0.7, 0.6, 0.05, 0, 0])
    np.testing.assert_allclose(found["correlation"], expected)
    assert found["n_above"].values.tolist() == [3, 2]
    assert found["in_all"].values.tolist() == [[True, True, False, False, False]]


def test_a_map_is_like_itself():
    twice = xr.concat(
        [RUNS[:2], RUNS[:2].assign_coords(retrieval_seed=RUNS.retrieval_seed[2:4])],
        "retrieval_run",
    )

    np.testing.assert_allclose(universality(twice)["correlation"], np.ones((2, 2)))


@pytest.mark.parametrize(
    ("runs", "by", "said"),
    [
        (RUNS, "depth", "they have .*seed"),
        (RUNS[:2], "seed", "runs of 1 count"),
        (RUNS[2:], "seed", "runs of 1 count"),
        (RUNS.isel(retrieval_run=0), "seed", "_run, layer, head"),
    ],
)
def test_what_cannot_be_compared(runs, by, said):
    with pytest.raises(InputError, match=said):
        universality(runs, by)
