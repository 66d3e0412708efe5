import json

import pytest
from tiny_tokenizers import merging_tokenizer, reader

from interp.errors import InputError
from interp.tasks import Choices, Problems
from interp.tasks.reading import read_text

MODEL = reader(merging_tokenizer())
GOOD = {"question": "What is ice?", "choices": ["water", "stone", "air"], "answer": 1}


def lines(path, *entries):
    written = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    path.write_text("\n".join(written), encoding="utf-8")
    return path


def decoded(item, span=None):
    ids = item.ids if span is None else item.ids[slice(*item.spans[span])]
    return MODEL.tokenizer.decode(ids)


def test_the_right_choice_is_the_item_and_the_others_its_others():
    (item,) = Choices([GOOD]).items(MODEL)

    assert decoded(item) == "Question: What is ice?\nAnswer: stone"
    assert [decoded(each)[-6:].split()[-1] for each in item.others] == ["water", "air"]
    assert decoded(item, "question").strip() == "What is ice?"
    assert item.labels == {"line": 1, "n_choices": 3}


def test_a_problem_is_its_question_and_answer():
    (item,) = Problems([{"question": "2 + 3?", "answer": "5"}]).items(MODEL)

    assert decoded(item) == "Question: 2 + 3?\nAnswer: 5"
    assert item.answer == "5"
    assert not item.others


def test_items_are_named_by_their_lines(tmp_path):
    path = lines(tmp_path / "a.jsonl", "", GOOD, "  ", GOOD | {"id": "more is ignored"})

    assert [item.name for item in Choices(path).items(MODEL)] == ["2", "4"]


@pytest.mark.parametrize("source", [str, lambda path: path])
def test_a_file_and_its_entries_are_the_same_task(tmp_path, source):
    path = lines(tmp_path / "a.jsonl", GOOD, GOOD)

    assert Choices(source(path)) == Choices([GOOD, GOOD])


def test_the_record_of_a_task_follows_from_its_questions():
    other = GOOD | {"answer": 2}
    records = [Choices([each] * 99).attrs["questions"] for each in (GOOD, GOOD, other)]

    assert records[0] == records[1] != records[2]


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ('{"question": ', "line 2: no JSON"),
        ("[1, 2]", "line 2: no object"),
        ({"question": "Ice?"}, "line 2: no list of texts 'choices'"),
        (GOOD | {"choices": ["a", 1]}, "line 2: no list of texts"),
        (GOOD | {"choices": "ab"}, "line 2: no list of texts"),
        (GOOD | {"choices": ["a"]}, "line 2: .* two or more"),
        (GOOD | {"choices": ["a", "a"]}, "line 2: .* differ"),
        (GOOD | {"answer": 3}, r"line 2: 'answer' is 3, not 0 to 2"),
        (GOOD | {"answer": -1}, "line 2: 'answer' is -1"),
        (GOOD | {"answer": "stone"}, "line 2: 'answer' is 'stone'"),
        (GOOD | {"answer": True}, "line 2: 'answer' is True"),
        (GOOD | {"question": " "}, "line 2: 'question' is ' '"),
        (GOOD | {"question": 3}, "line 2: 'question' is 3, not a text"),
    ],
)
def test_a_broken_line_is_named_with_what_a_good_one_looks_like(
    tmp_path, broken, named
):
    path = lines(tmp_path / "quiz.jsonl", GOOD, broken, GOOD)

    with pytest.raises(InputError, match=named) as error:
        Choices(path)
    assert str(path) in str(error.value)
    assert '{"question": "What is ice?"' in str(error.value)


def shown_in(error):
    """The line that an error shows as an example."""
    shown = str(error.value).split("Write each as ")[1]
    return json.loads(shown.removesuffix(" on a line of its own."))


def test_the_line_that_an_error_shows_is_a_good_one():
    with pytest.raises(InputError) as error:
        Choices(["no object"])
    assert Choices([shown_in(error)])
    with pytest.raises(InputError) as error:
        Problems([{"question": "2 + 3?", "answer": 5}])
    assert "entry 1: 'answer' is 5, not a text" in str(error.value)
    assert Problems([shown_in(error)])


def test_all_broken_lines_are_counted_and_the_first_ones_named(tmp_path):
    path = lines(tmp_path / "quiz.jsonl", *["{"] * 3, GOOD, *["{"] * 6)

    with pytest.raises(InputError, match="9 of 10 cannot be") as error:
        Choices(path)
    named = [f"line {n}:" in str(error.value) for n in range(1, 11)]
    assert named == [True, True, True, False, True, True, *[False] * 4]
    assert "and 4 more" in str(error.value)


def test_a_file_without_questions_is_refused(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        Problems(lines(tmp_path / "a.jsonl", "", ""))
    with pytest.raises(InputError, match="there are none"):
        Problems([])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"ab\xff"), "byte 2"),
        (lambda path: path.write_text(" \n"), "is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, make, named):
    path = tmp_path / "a.txt"
    make(path)

    with pytest.raises(InputError, match=named) as error:
        read_text(path)
    assert str(path) in str(error.value)
