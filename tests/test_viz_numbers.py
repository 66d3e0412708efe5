import numpy as np
import pytest

from interp.viz.numbers import (
    NOTHING,
    interval,
    number,
    percent,
    plural,
    ranges,
    signed,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.94, "0.940"),
        (0.0, "0"),
        (1.0, "1.00"),
        (22_513.4, "22,500"),
        (4618, "4,618"),
        (np.int32(12), "12"),
        (-441.6, "\N{MINUS SIGN}442"),
        (0.0018, "0.0018"),
        (8.04e-5, "0.000080"),
        (3.2e-9, "3.2e\N{MINUS SIGN}09"),
        (float("nan"), NOTHING),
        (float("inf"), NOTHING),
    ],
)
def test_numbers_keep_three_digits_and_integers_all(value, text):
    assert number(value) == text


def test_a_change_tells_its_sign():
    assert signed(0.25) == "+0.250"
    assert signed(-0.25) == "\N{MINUS SIGN}0.250"
    assert signed(0.0) == "0"
    assert signed(float("nan")) == NOTHING


def test_percentages_are_whole_above_one():
    assert percent(0.304) == "30\N{NO-BREAK SPACE}%"
    assert percent(0.004) == "0.4\N{NO-BREAK SPACE}%"
    assert percent(float("nan")) == NOTHING


def test_an_interval_with_an_unknown_bound_is_no_interval():
    assert interval(0.25, 0.5) == "0.250 to 0.500"
    assert interval(0.25, float("nan")) == NOTHING


def test_nouns_agree_with_their_number():
    assert plural(1, "head") == "1 head"
    assert plural(1024, "token") == "1,024 tokens"
    assert plural(0, "head") == "0 heads"


def test_runs_of_indices_are_joined():
    assert ranges([3, 7, 5, 6, 5]) == "3, 5\N{EN DASH}7"
    assert ranges([]) == NOTHING
