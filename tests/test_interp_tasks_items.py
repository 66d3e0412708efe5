import json
import math

import pytest
from tiny_tokenizers import merging_tokenizer, reader

from interp.errors import InputError
from interp.tasks import (
    Choices,
    Item,
    KeyValue,
    Needle,
    Passkey,
    Problems,
    RepeatedTokens,
    Texts,
)

MODEL = reader(merging_tokenizer(opens=True))
TASKS = [
    Texts({"a": "The light at Orrin Skerry. " * 40}, max_tokens=64),
    Texts(),
    RepeatedTokens(block=8, copies=3, seeds=(0, 5)),
    Passkey(lengths=(300, 400), depths=(0, 0.5, 1), seeds=(0, 7)),
    Passkey(lengths=(400,), kind="nato", words=5),
    Needle(lengths=(300,)),
    KeyValue(pairs=5, shots=2, seeds=(0, 1)),
    Choices([{"question": "Is ice cold?", "choices": ["yes", "no"], "answer": 0}]),
    Problems([{"question": "2 + 3?", "answer": "5"}] * 2),
]
tasks = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@tasks
def test_items_are_the_same_in_every_run(task):
    assert task.items(MODEL) == task.items(MODEL)


@tasks
def test_items_differ_by_name(task):
    names = [item.name for item in task.items(MODEL)]

    assert len(names) == len(set(names)) >= 1


@tasks
def test_items_of_a_task_carry_the_same_labels_and_spans(task):
    items = task.items(MODEL)

    assert len({tuple(item.labels) for item in items}) == 1
    assert len({tuple(item.spans) for item in items}) == 1


@tasks
def test_what_is_scored_is_the_answer(task):
    for item in task.items(MODEL):
        for each in (item, *item.others):
            scored = MODEL.tokenizer.decode(each.ids[slice(*each.scored)])

            assert not each.answer or scored == f" {each.answer}"


@tasks
def test_every_knob_is_recorded_and_fits_into_json(task):
    attrs = task.attrs

    assert json.loads(json.dumps(attrs)) == attrs
    assert attrs["task"] == type(task).__name__
    assert attrs["name"] == task.name
    assert len(json.dumps(attrs)) < 5000


def test_a_long_text_is_recorded_as_its_hash():
    one, other = (Texts({"a": letter * 5000}).attrs["texts"] for letter in "ab")

    assert one.startswith("sha256:")
    assert one != other
    assert Texts({"a": "short"}).attrs["texts"] == {"a": "short"}


@tasks
def test_chance_is_what_guessing_gives(task):
    size = MODEL.anatomy.vocab_size
    expected = {
        "nll": math.log(size),
        "accuracy": 1 / size,
        "exact": 0,
        "choice": 1 / 2,
    }

    assert task.chance(MODEL) == pytest.approx(expected[task.metric])
    assert task.is_better_high == (task.metric != "nll")


def test_chance_among_choices_is_the_mean_over_questions():
    question = {"question": "?", "answer": 0}
    task = Choices(
        [question | {"choices": ["a", "b"]}, question | {"choices": list("abcd")}]
    )

    assert task.chance(MODEL) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_chance_needs_a_vocabulary():
    model = reader(None)
    model.anatomy.vocab_size = None

    with pytest.raises(InputError, match="vocabulary"):
        Texts().chance(model)


@pytest.mark.parametrize("scored", [(0, 2), (2, 2), (3, 2), (1, 4)])
def test_scored_tokens_lie_behind_the_first(scored):
    with pytest.raises(InputError, match=f"tokens {scored[0]} to {scored[1]}"):
        Item("a", (1, 2, 3), scored)


@pytest.mark.parametrize("span", [(-1, 2), (1, 1), (2, 4)])
def test_a_span_holds_tokens(span):
    with pytest.raises(InputError, match="span needle"):
        Item("a", (1, 2, 3), (1, 2), {"needle": span})
