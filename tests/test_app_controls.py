import pytest

from interp.app.controls import Controls
from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet

GRID = HeadGrid(30, 9, 3)
HEADS = HeadSet.parse("L1.H2,L1.H3,L5.H0", GRID)


def per_layer(heads):
    return {layer: len(row) for layer, row in heads.by_layer().items()}


def test_twenty_different_draws_of_as_many_other_heads_in_each_layer():
    controls = Controls.of(HEADS, None, 0)
    assert len(set(controls.drawn)) == 20
    assert controls.notes == ()
    for drawn in controls.drawn:
        assert per_layer(drawn) == {1: 2, 5: 1}
        assert not drawn & HEADS


def test_the_seed_decides_and_repeats():
    assert Controls.of(HEADS, 25, 3) == Controls.of(HEADS, 25, 3)
    assert Controls.of(HEADS, 25, 3) != Controls.of(HEADS, 25, 4)


def test_the_first_is_the_draw_of_that_seed():
    first = Controls.of(HEADS, 20, 7).drawn[0]
    assert first == HEADS.random_like(7, exclude=HEADS)


def test_whole_groups_are_drawn_against_whole_groups():
    groups = HeadSet.parse("L1.H2,L5.H0", GRID).as_kv_groups()
    controls = Controls.of(groups, None, 0, groups=True)
    # Two other groups in each of the two layers.
    assert len(controls.drawn) == 4
    for drawn in controls.drawn:
        assert drawn == drawn.as_kv_groups()
        assert len(drawn) == len(groups)
        assert not drawn & groups
    assert "allow 4 different controls, fewer than 20" in controls.notes[0]


def test_unset_all_there_are_are_drawn_and_said():
    one = HeadSet.parse("L1.H2", GRID)
    controls = Controls.of(one, None, 0)
    assert len(controls.drawn) == 8
    assert "at least 0.11" in controls.notes[0]


def test_more_than_there_are_is_refused_with_how_many_there_are():
    with pytest.raises(InputError, match=r"50 random controls.*allow 8 different"):
        Controls.of(HeadSet.parse("L1.H2", GRID), 50, 0)


def test_too_few_are_refused_unless_there_are_no_more():
    with pytest.raises(InputError, match="fewer than 20 tell little"):
        Controls.of(HEADS, 5, 0)
    one = HeadSet.parse("L1.H2", GRID)
    with pytest.raises(InputError, match="--controls 8 or more"):
        Controls.of(one, 5, 0)
    assert len(Controls.of(one, 8, 0).drawn) == 8


def test_none_comes_with_a_warning():
    controls = Controls.of(HEADS, 0, 0)
    assert controls.drawn == ()
    assert "is not known" in controls.notes[0]


def test_where_a_layer_is_too_small_controls_overlap_and_say_so():
    many = HeadSet.of([(1, head) for head in range(6)], GRID)
    controls = Controls.of(many, None, 0)
    assert len(set(controls.drawn)) == 20
    assert all(drawn != many and len(drawn) == 6 for drawn in controls.drawn)
    assert "too few other heads in L1" in controls.notes[-1]


def test_of_all_heads_there_is_no_control():
    controls = Controls.of(HeadSet(tuple(GRID), GRID), None, 0)
    assert controls.drawn == ()
    assert "hold no other heads" in controls.notes[0]
    with pytest.raises(InputError, match="allow 0 different"):
        Controls.of(HeadSet(tuple(GRID), GRID), 20, 0)
