"""Which heads stay full, and the file that trained gates are exchanged in."""

import numpy as np
import pytest
import xarray as xr

from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet
from interp.probes.gate_patterns import full_heads, load_pattern, save_pattern

GRID = HeadGrid(2, 6, 3)


def gates(values=((0.1, 1.0, 0.5), (0.9, 0.2, 0.0))):
    by_head = np.array(values, dtype=float).repeat(2, axis=1)
    heads = np.arange(6)
    coords = {"layer": [0, 1], "head": heads, "kv_head": ("head", heads // 2)}
    return xr.DataArray(by_head, dims=("layer", "head"), coords=coords, name="gates")


def groups(*pairs):
    return HeadSet.of([(layer, 2 * g + i) for layer, g in pairs for i in (0, 1)], GRID)


def test_half_of_the_groups_stay_full_with_all_their_heads():
    assert full_heads(gates(), 0.5) == groups((0, 1), (1, 0), (0, 2))
    assert full_heads(gates(), 2 / 3) == groups((0, 1), (1, 0))


def test_the_threshold_is_a_quantile_as_numpy_interpolates_it():
    # Of 6 gates the quantile 0.3 lies between the second and the third.
    assert len(full_heads(gates(), 0.3)) == 2 * 4


@pytest.mark.parametrize(("sparsity", "n"), [(0, 12), (-1, 12), (1, 0), (1.5, 0)])
def test_all_or_none_stay_full_at_the_ends(sparsity, n):
    assert len(full_heads(gates(), sparsity)) == n
    assert len(full_heads(gates(np.zeros((2, 3))), sparsity)) == n


def test_equal_gates_are_decided_by_noise_that_a_seed_repeats():
    equal = gates(np.ones((2, 3)))
    chosen = [full_heads(equal, 0.5, seed=seed) for seed in range(8)]

    assert {len(each) for each in chosen} == {6}
    assert len(set(chosen)) > 1
    assert full_heads(equal, 0.5, seed=3) == chosen[3]


def test_noise_decides_nothing_but_equals():
    close = gates(((0.5, 0.500002, 0.500004), (0.500006, 0.500008, 0.50001)))
    wanted = groups((1, 0), (1, 1), (1, 2))
    assert all(full_heads(close, 0.5, seed=seed) == wanted for seed in range(20))


def test_a_threshold_may_be_given_instead():
    assert full_heads(gates(), threshold=0.85) == groups((0, 1), (1, 0))
    for asked in ({}, {"sparsity": 0.5, "threshold": 0.5}):
        with pytest.raises(InputError, match="either sparsity or threshold"):
            full_heads(gates(), **asked)


def test_the_file_has_a_row_a_layer_and_comes_back(tmp_path):
    path = tmp_path / "full_attention_heads.tsv"
    save_pattern(gates(), path)
    rows = [row.split("\t") for row in path.read_text().splitlines()]

    assert [[float(cell) for cell in row] for row in rows] == [
        [0.1, 1.0, 0.5],
        [0.9, 0.2, 0.0],
    ]
    xr.testing.assert_equal(load_pattern(path, GRID), gates())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_gates_a_little_outside_are_clipped(tmp_path):
    path = tmp_path / "gates.tsv"
    path.write_text("-0.0014\t1\t0.5\n0\t1.02\t0.25\n")
    by_group = load_pattern(path, GRID).isel(head=slice(0, None, 2))
    assert by_group.values.tolist() == [[0, 1, 0.5], [0, 1, 0.25]]


def test_a_single_row_is_a_model_of_one_layer(tmp_path):
    path = tmp_path / "gates.tsv"
    path.write_text("0.5\t1\n")
    assert load_pattern(path, HeadGrid(1, 4, 2)).shape == (1, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.5\t1\n0.5\t1\n", "2 rows of 2 gates; the model has 2 layers of 3 KV heads"),
        ("0.5\t1\t0\n", "1 rows of 3"),
        ("0.5\t1\n0.5\t1\t0\n", "were to be read"),
        ("0.5\tone\t0\n0.5\t1\t0\n", "were to be read"),
        ("0.5\t7\t0\n0.5\t1\t0\n", "values from 0 to 7"),
        ("0.5\tnan\t0\n0.5\t1\t0\n", "1 of 6 gates are no numbers"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, says):
    path = tmp_path / "gates.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        load_pattern(path, GRID)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"were to be read from .*none\.tsv"):
        load_pattern(tmp_path / "none.tsv", GRID)


def test_gates_that_are_no_numbers_are_refused(tmp_path):
    broken = gates(np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="6 of 6 gates are no numbers"):
        full_heads(broken, 0.5)
    with pytest.raises(InputError, match="no numbers"):
        save_pattern(broken, tmp_path / "gates.tsv")
