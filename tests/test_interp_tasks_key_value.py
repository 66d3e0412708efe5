import json

import pytest
from tiny_tokenizers import merging_tokenizer, reader

from interp.errors import InputError
from interp.tasks import KeyValue

MODEL = reader(merging_tokenizer())


def decoded(item, span=None):
    ids = item.ids if span is None else item.ids[slice(*item.spans[span])]
    return MODEL.tokenizer.decode(ids)


def held(item):
    text = decoded(item)
    return json.loads(text[text.index("{") : text.index("}") + 1])


@pytest.mark.parametrize("shots", [0, 3])
def test_the_answer_is_the_value_of_the_key_that_is_asked_for(shots):
    for item in KeyValue(pairs=6, shots=shots, seeds=(0, 1, 2)).items(MODEL):
        key = decoded(item, "question").split("Key: ")[1].split("\n")[0]

        assert held(item)[key] == item.answer
        assert f'"{key}": "{item.answer}"' in decoded(item, "pair")
        assert item.answer in decoded(item, "value")
        assert decoded(item).endswith(f"Key: {key}\nValue: {item.answer}")


def test_the_object_has_as_many_different_entries_as_asked():
    item = KeyValue(pairs=7).items(MODEL)[0]

    assert len(held(item)) == len(set(held(item).values())) == 7
    assert all(len(key) == 32 and key.isalnum() for key in held(item))


def test_examples_are_other_entries_and_right():
    item = KeyValue(pairs=6, shots=3).items(MODEL)[0]
    solved = [part.split("\nValue: ") for part in decoded(item).split("Key: ")[1:]]
    keys = [key for key, _ in solved]

    assert len(set(keys)) == 4
    assert all(held(item)[key] == value.strip() for key, value in solved)


def test_values_are_short_sentences_of_the_text():
    text = "A short one. " + "word " * 60 + "end. Another one. A third! And more?"
    item = KeyValue(pairs=4, shots=1, haystack=text).items(MODEL)[0]

    assert sorted(held(item).values()) == [
        *("A short one.", "A third!", "And more?", "Another one.")
    ]


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"pairs": 3, "shots": 3}, "3 entries with 3 examples"),
        ({"shots": -1}, "-1 examples"),
    ],
)
def test_more_examples_than_entries_are_refused(knobs, named):
    with pytest.raises(InputError, match=named):
        KeyValue(**knobs)


def test_a_text_with_few_sentences_is_refused():
    with pytest.raises(InputError, match="the text has 2 different sentences"):
        KeyValue(haystack="One. Two. One.").items(MODEL)


def test_an_object_beyond_the_context_is_refused():
    with pytest.raises(InputError, match="was made for 256"):
        KeyValue().items(reader(merging_tokenizer(), 256))
