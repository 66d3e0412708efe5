"""Names of heads, sets of them, choices and controls."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny

from interp.anatomy import Anatomy
from interp.errors import InputError, UnsupportedModelError
from interp.heads import HeadGrid, HeadId, HeadSet

GRID = HeadGrid(n_layers=3, n_heads=4, n_kv_heads=2)
ALL = list(GRID)

head_sets = st.lists(st.sampled_from(ALL)).map(lambda heads: HeadSet.of(heads, GRID))


def signal(values: list[list[float]], **attrs) -> xr.DataArray:
    return xr.DataArray(np.array(values), dims=("layer", "head"), attrs=attrs)


@given(st.sampled_from(ALL))
def test_a_head_reads_back_from_its_name(head):
    assert HeadId.parse(str(head)) == head


def test_a_head_prints_as_layer_and_head():
    assert str(HeadId(12, 7)) == "L12.H7"
    assert HeadId.parse(" l12.h7 ") == HeadId(12, 7)


@pytest.mark.parametrize("text", ["", "12.7", "L1H2", "L1.H", "L-1.H2", "L1.H2.H3"])
def test_a_malformed_name_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"L12\.H7"):
        HeadId.parse(text)


@given(head_sets)
def test_a_set_reads_back_from_its_list(heads):
    if heads:
        assert HeadSet.parse(str(heads), GRID).heads == heads.heads


@given(head_sets, head_sets)
def test_set_operations_agree_with_python_sets(left, right):
    assert set(left | right) == set(left.heads) | set(right.heads)
    assert set(left & right) == set(left.heads) & set(right.heads)
    assert set(left - right) == set(left.heads) - set(right.heads)
    assert (left & right) | (left - right) == left
    assert left.isdisjoint(right) == (not left & right)
    assert (left <= right) == (set(left.heads) <= set(right.heads))


def test_operations_keep_the_order_of_the_left_set():
    left = HeadSet.parse("L2.H1,L0.H3", GRID)
    right = HeadSet.parse("L0.H0,L0.H3,L2.H1", GRID)
    assert str(left | right) == "L2.H1,L0.H3,L0.H0"
    assert str(left & right) == "L2.H1,L0.H3"
    assert str(right - left) == "L0.H0"


def test_sets_are_equal_and_hash_alike_in_any_order():
    left, right = HeadSet.of(ALL, GRID), HeadSet.of(ALL[::-1], GRID)
    assert left == right
    assert hash(left) == hash(right)
    assert left != HeadSet.of(ALL, HeadGrid(3, 4, 4))
    assert left != set(ALL)


def test_a_repeated_head_counts_once():
    assert len(HeadSet.parse("L1.H2,L1.H2", GRID)) == 1


def test_sets_of_different_grids_do_not_combine():
    other = HeadSet.of(ALL, HeadGrid(3, 4, 2, site="cross"))
    with pytest.raises(InputError, match="one grid"):
        _ = HeadSet.of(ALL, GRID) | other


@pytest.mark.parametrize("name", ["L3.H0", "L0.H4", "L40.H9"])
def test_a_head_that_does_not_exist_is_refused_with_the_range(name):
    with pytest.raises(InputError, match=rf"{name}.*L0 to L2 .* H0 to H3"):
        HeadSet.parse(f"L0.H0,{name}", GRID)


def test_by_layer_lists_heads_in_ascending_order():
    heads = HeadSet.parse("L2.H3,L0.H1,L2.H0", GRID)
    assert heads.by_layer() == {0: (1,), 2: (0, 3)}
    assert list(heads.by_layer()) == [0, 2]


def test_kv_groups_are_completed():
    heads = HeadSet.parse("L2.H3,L0.H1", GRID)
    assert heads.kv_heads == ((2, 1), (0, 0))
    assert str(heads.as_kv_groups()) == "L2.H2,L2.H3,L0.H0,L0.H1"


@given(head_sets)
def test_completing_groups_twice_changes_nothing(heads):
    whole = heads.as_kv_groups()
    assert heads <= whole
    assert whole.as_kv_groups() == whole
    assert len(whole) == len(whole.kv_heads) * GRID.group


def test_the_top_heads_come_most_extreme_first():
    values = signal([[1, 5, 2], [9, 0, 5]])
    assert str(HeadSet.top(values, k=3)) == "L1.H0,L0.H1,L1.H2"
    assert str(HeadSet.top(values, k=2, largest=False)) == "L1.H1,L0.H0"
    assert str(HeadSet.top(values.transpose("head", "layer"), k=1)) == "L1.H0"


def test_a_share_is_of_the_heads_with_a_value_and_at_least_one():
    values = signal([[1, 2, 3, np.nan], [4, 5, 6, np.nan]])
    assert str(HeadSet.top(values, share=0.5)) == "L1.H2,L1.H1,L1.H0"
    assert len(HeadSet.top(values, share=0.01)) == 1
    assert len(HeadSet.top(values, share=1.0)) == 6


@pytest.mark.parametrize("largest", [True, False])
def test_nan_is_never_chosen(largest):
    values = signal([[np.nan, 2, np.inf], [np.nan, -np.inf, 0]])
    assert HeadId(0, 0) not in HeadSet.top(values, k=4, largest=largest)
    with pytest.raises(InputError, match="4 of 6 heads have a value"):
        HeadSet.top(values, k=5, largest=largest)


def test_layers_of_a_selection_keep_their_numbers():
    values = signal([[0, 1], [2, 3], [4, 5]]).assign_coords(layer=[0, 1, 2])
    assert str(HeadSet.top(values.isel(layer=[1]), k=1)) == "L1.H1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either k or share"),
        ({"k": 1, "share": 0.1}, "either k or share"),
        ({"k": 0}, "between 1 and 2"),
        ({"k": 3}, "between 1 and 2"),
        ({"share": 5.0}, "5% as 0.05"),
        ({"share": 0.0}, "5% as 0.05"),
    ],
)
def test_an_impossible_choice_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        HeadSet.top(signal([[1, 2]]), **options)


def test_a_signal_without_a_value_is_refused():
    with pytest.raises(InputError, match="0 of 2 heads"):
        HeadSet.top(signal([[np.nan, np.nan]]), share=0.5)


def test_a_signal_over_other_dimensions_is_refused():
    with pytest.raises(InputError, match="sample"):
        HeadSet.top(xr.DataArray(np.zeros((1, 2, 3)), dims=("sample", "layer", "head")))


def test_a_signal_tells_its_groups_and_its_site():
    values = signal([[1, 2, 3, 4]], site="cross")
    assert HeadGrid.of(values) == HeadGrid(1, 4, 4, "cross")
    values = values.assign_coords(kv_head=("head", [0, 0, 1, 1]))
    assert HeadSet.top(values, k=1).kv_heads == ((0, 1),)


@given(head_sets, st.integers(0, 99))
def test_a_control_has_as_many_heads_in_each_layer(heads, seed):
    control = heads.random_like(seed, overlap=True)
    counts = {layer: len(row) for layer, row in heads.by_layer().items()}
    assert {layer: len(row) for layer, row in control.by_layer().items()} == counts
    assert control.heads == heads.random_like(seed, overlap=True).heads


@given(st.integers(0, 99))
def test_a_control_avoids_the_set_and_what_is_excluded(seed):
    heads = HeadSet.parse("L0.H0,L2.H3", GRID)
    excluded = HeadSet.parse("L0.H1,L0.H2", GRID)
    control = heads.random_like(seed, exclude=excluded)
    assert HeadId(0, 3) in control
    assert control.isdisjoint(heads | excluded)


def test_controls_of_different_seeds_differ():
    heads = HeadSet.of([(layer, 0) for layer in range(9)], HeadGrid(9, 9, 3))
    assert len({heads.random_like(seed) for seed in range(9)}) > 5


def test_a_layer_too_full_for_a_control_is_refused_unless_overlap_is_allowed():
    heads = HeadSet.parse("L1.H0,L1.H1,L1.H2", GRID)
    with pytest.raises(InputError, match=r"3 heads of layer 1.*1 of its 4"):
        heads.random_like(0)
    assert len(heads.random_like(0, overlap=True)) == 3


def test_the_grid_of_a_model_is_that_of_the_site():
    assert HeadGrid.of(Anatomy.of(tiny("llama")[0])) == HeadGrid(2, 4, 2)
    whisper = Anatomy.of(tiny("whisper")[0])
    assert HeadGrid.of(whisper, "cross") == HeadGrid(2, 4, 4, "cross")
    with pytest.raises(UnsupportedModelError, match=r"'self'.*has encoder"):
        HeadSet.parse("L0.H0", Anatomy.of(tiny("bert")[0]))


def test_layers_that_differ_in_their_heads_have_no_grid():
    anatomy = Anatomy.of(tiny("llama")[0])
    first, second = anatomy.sites
    uneven = replace(anatomy, sites=(first, replace(second, n_heads=8)))
    with pytest.raises(UnsupportedModelError, match=r"\(4, 2\), \(8, 2\)"):
        HeadGrid.of(uneven)


def test_a_grid_whose_groups_do_not_divide_is_refused():
    with pytest.raises(InputError, match="3 KV heads"):
        HeadGrid(1, 4, 3)
