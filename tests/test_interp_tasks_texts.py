import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import merging_tokenizer, reader

from interp.errors import InputError
from interp.tasks import RepeatedTokens, Texts
from interp.tasks.reading import shipped

MODEL = reader(merging_tokenizer())
OPENS = reader(merging_tokenizer(opens=True))


@given(st.integers(4, 300), st.integers(2, 2000), st.booleans())
def test_stretches_hold_the_whole_text_and_are_equally_long(most, length, opens):
    model = OPENS if opens else MODEL
    text = shipped()[:length]
    items = Texts({"a": text}, max_tokens=most).items(model)
    lengths = [len(item.ids) for item in items]
    tokens = [token for item in items for token in item.ids[opens:]]

    assert model.tokenizer.decode(tokens) == text
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1
    assert all(item.scored == (1, len(item.ids)) for item in items)
    assert all(item.ids[0] == 0 for item in items if opens)


def test_stretches_are_named_by_text_and_number():
    items = Texts({"a": "one two " * 30, "b": "short"}, max_tokens=32).items(MODEL)

    assert [item.name for item in items[:2]] == ["a-0", "a-1"]
    assert items[-1].name == "b-0"
    assert items[1].labels == {"text": "a", "stretch": 1}


def test_a_short_context_makes_short_stretches():
    items = Texts().items(reader(merging_tokenizer(), 100))

    assert 95 <= max(len(item.ids) for item in items) <= 100


@pytest.mark.parametrize("texts", [{}, {"a": ""}, {"a": "T"}])
def test_a_text_without_anything_to_predict_is_refused(texts):
    with pytest.raises(InputError, match=r"needs at least one|nothing is left"):
        Texts(texts).items(MODEL)


def test_stretches_of_three_tokens_are_refused():
    with pytest.raises(InputError, match="max_tokens=3"):
        Texts(max_tokens=3)


def test_a_text_needs_a_tokenizer():
    with pytest.raises(InputError, match="came without one"):
        Texts().items(reader(None))


def test_repeated_tokens_are_scored_from_the_second_ones_of_the_second_copy():
    task = RepeatedTokens(block=7, copies=3, seeds=(4,))
    (item,) = task.items(OPENS)
    begin, end = item.scored

    assert item.name == "4"
    assert item.ids[0] == 0
    assert (begin, end) == (1 + 7 + 1, 1 + 3 * 7)
    assert item.ids[slice(*item.spans["block"])] == item.ids[1:8]
    assert all(item.ids[n] == item.ids[n - 7] for n in range(begin, end))
    assert item.labels == {"seed": 4, "block_length": 7}


def test_repeated_tokens_fit_the_context():
    (item,) = RepeatedTokens(seeds=(0,)).items(reader(merging_tokenizer(), 64))

    assert len(item.ids) == 64
    assert item.labels["block_length"] == 16
