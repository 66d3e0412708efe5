from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.capture import TokenEdges
from interp.errors import InputError
from interp.tasks import repeated_random, repeated_random_for


class Tokenizer:
    """A tokenizer of 20 tokens that opens every text with token 1."""

    all_special_ids = (0, 1)
    added_tokens_decoder = {0: "<pad>", 1: "<s>", 19: "<tool>"}  # noqa: RUF012

    def __init__(self, opens=True):
        self.opens = opens

    def __len__(self):
        return 20

    def __call__(self, text):
        return {"input_ids": [1, 7] if self.opens else [7]}


def a_model(tokenizer, vocab_size: int | None = 64, max_positions=100) -> Any:
    anatomy = SimpleNamespace(
        model_type="toy", vocab_size=vocab_size, max_positions=max_positions
    )
    return SimpleNamespace(anatomy=anatomy, tokenizer=tokenizer)


@given(st.integers(0, 99), st.integers(2, 9), st.integers(2, 5))
def test_the_block_repeats_and_its_tokens_differ(seed, block, copies):
    task = repeated_random(30, block=block, copies=copies, seed=seed, avoid=range(5))
    ids = task.ids

    assert len(ids) == block * copies
    assert ids == ids[:block] * copies
    assert len(set(ids)) == block
    assert min(ids) >= 5
    assert max(ids) < 30
    assert task.note == ""


def test_a_seed_decides_the_ids():
    assert repeated_random(500, seed=1) == repeated_random(500, seed=1)
    assert repeated_random(500, seed=1).ids != repeated_random(500, seed=2).ids


def test_a_prefix_stands_once_in_front():
    task = repeated_random(10, block=3, copies=2, prefix=[9])

    assert task.ids[0] == 9
    assert 9 not in task.ids[1:]
    assert len(task.ids) == 1 + 2 * 3
    assert task.prefix_length == 1


def test_a_short_context_shortens_the_block_and_says_so():
    task = repeated_random(500, block=256, copies=4, prefix=[1], max_tokens=64)

    assert task.block_length == 15
    assert len(task.ids) == 1 + 4 * 15
    assert "15 tokens, not 256" in task.note
    assert "64 tokens hold 4 copies" in task.note


def test_a_small_vocabulary_shortens_the_block_and_says_so():
    task = repeated_random(12, avoid=[0, 1])

    assert task.block_length == 10
    assert "10 tokens may be used" in task.note


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"copies": 1}, "got 1"),
        ({"block": 1}, "asked for 1"),
        ({"max_tokens": 7}, "7 tokens hold 4 copies of 1"),
        ({"max_tokens": 0, "prefix": [3]}, "copies of 0"),
        ({"avoid": range(50)}, "0 tokens may be used"),
    ],
)
def test_no_room_for_the_task_is_refused(options, named):
    with pytest.raises(InputError, match=named):
        repeated_random(50, **options)


def test_the_task_says_what_to_capture_and_what_the_trace_carries():
    task = repeated_random(50, block=5, copies=4, seed=2, prefix=[1])

    assert task.capture.edges == TokenEdges(copies=3)
    assert not task.capture.statistics
    assert task.attrs == {
        "task": "repeated_random",
        "block_length": 5,
        "copies": 4,
        "prefix_length": 1,
        "seed": 2,
    }


def test_a_models_special_tokens_are_avoided_and_its_opening_one_kept():
    task = repeated_random_for(a_model(Tokenizer()), block=256, copies=2)

    assert task.ids[0] == 1
    assert task.prefix_length == 1
    assert set(task.ids[1:]) == set(range(2, 19))


def test_a_model_without_an_opening_token_has_no_prefix():
    task = repeated_random_for(a_model(Tokenizer(opens=False)), block=3)

    assert task.prefix_length == 0


def test_a_model_without_a_tokenizer_uses_its_whole_vocabulary():
    task = repeated_random_for(a_model(None, vocab_size=6), copies=2)

    assert sorted(task.ids[:6]) == [0, 1, 2, 3, 4, 5]


def test_the_shorter_of_context_and_limit_holds():
    model = a_model(None)

    assert repeated_random_for(model).block_length == 25
    assert repeated_random_for(model, max_tokens=40).block_length == 10
    assert repeated_random_for(model, max_tokens=400).block_length == 25


def test_a_model_without_a_vocabulary_is_refused():
    with pytest.raises(InputError, match="vocabulary"):
        repeated_random_for(a_model(None, vocab_size=None))
