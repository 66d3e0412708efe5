import hand_traces as hand
import numpy as np
import pytest

from interp.errors import NotCapturedError
from interp.probes.patterns import DuplicateToken, Echo, Induction, PreviousToken

REPEATED = {"task": "repeated_random", "block_length": 2, "copies": 3}
TOKENS = [7, 8] * 3


def one_head(targets, tokens=TOKENS, **attrs):
    """A trace of one head whose query i looks at key targets[i] only."""
    weights = hand.pointing(targets)[None, None]
    return hand.trace(self=hand.site(weights, tokens=tokens), **attrs)


def test_a_previous_token_head_scores_one():
    trace = one_head([0, 0, 1, 2, 3, 4], **REPEATED)

    assert PreviousToken()(trace).item() == 1


def test_previous_token_counts_every_row_but_the_first():
    trace = one_head([0, 0, 1, 0, 0, 0], **REPEATED)

    assert PreviousToken()(trace).item() == 2 / 5


def test_an_induction_head_scores_one_and_no_echo():
    trace = one_head([0, 0, 1, 2, 3, 4], **REPEATED)

    assert Induction()(trace).item() == 1
    assert Echo()(trace).item() == 0


def test_echo_sums_all_earlier_copies_and_induction_the_keys_after_them():
    trace = one_head([0, 1, 0, 1, 0, 1], **REPEATED)

    assert Echo()(trace).item() == 1
    # Of queries 2 to 5, 3 and 5 look at key 1, which follows no other 8.
    assert Induction()(trace).item() == 0


def test_duplicate_token_counts_the_second_copy_only():
    trace = one_head([0, 1, 0, 3, 0, 1], **REPEATED)

    assert DuplicateToken()(trace).item() == 1 / 2
    assert Echo()(trace).item() == 3 / 4


def test_a_prefix_shifts_the_copies():
    trace = one_head(
        [0, 0, 1, 1, 2, 1, 5], tokens=[5, *TOKENS], prefix_length=1, **REPEATED
    )

    # The second copy is queries 3 and 4, which look at their first occurrence.
    assert DuplicateToken()(trace).item() == 1
    assert Echo()(trace).item() == 3 / 4


def test_on_plain_text_only_rows_with_a_target_count():
    trace = one_head([0, 0, 0, 1, 0], tokens=[3, 4, 3, 4, 9])

    assert DuplicateToken()(trace).item() == 1
    assert Induction()(trace).item() == 0


def test_a_text_without_repetition_gives_nan():
    trace = one_head([0, 0, 1], tokens=[1, 2, 3])

    assert np.isnan(Induction()(trace).item())
    assert PreviousToken()(trace).item() == 1


def test_echo_refuses_a_text_that_is_not_the_task():
    with pytest.raises(NotCapturedError, match="repeated random tokens"):
        Echo()(one_head([0, 0, 1], tokens=[1, 2, 3]))
