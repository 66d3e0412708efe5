import json

import pytest
from tiny_tokenizers import merging_tokenizer, reader

from interp.errors import InputError
from interp.tasks import (
    TASKS,
    KeyValue,
    Needle,
    Passkey,
    Problems,
    RepeatedTokens,
    Texts,
    named,
)
from interp.tasks.reading import shipped

MODEL = reader(merging_tokenizer())


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("The sea was calm. " * 50, encoding="utf-8")
    return path


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps({"question": "2 + 3?", "answer": "5"}))
    return path


@pytest.mark.parametrize(
    ("spec", "task"),
    [
        ("nll", Texts({"lighthouse": shipped()})),
        ("repeated", RepeatedTokens()),
        ("passkey", Passkey()),
        ("nato", Passkey(kind="nato", name="nato")),
        ("needle", Needle()),
        ("key_value", KeyValue()),
    ],
)
def test_a_name_means_a_task_as_it_comes(spec, task):
    assert named(spec) == task
    assert named(spec).name == spec
    assert named({"task": spec}) == task


def test_a_file_behind_a_name_is_read(text, problems):
    story = text.read_text()

    assert named(f"nll:{text}") == Texts({"story": story}, name="nll-story")
    assert named(f"passkey:{text}") == Passkey(haystack=story, name="passkey-story")
    assert named(f"problems:{problems}") == Problems(problems, name="problems-sums")


def test_a_mapping_sets_knobs(text):
    spec = {"task": "nato", "lengths": [300], "depths": [0, 0.5], "words": 3}
    task = named({**spec, "name": "short"})

    assert task == Passkey((300,), (0, 0.5), kind="nato", words=3, name="short")
    assert named({"task": f"needle:{text}", "seeds": [1]}).haystack == text.read_text()
    assert named({"task": "nll", "texts": {"a": "b c"}}).texts == {"a": "b c"}
    assert len(task.items(MODEL)) == 4


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("pass_key", "'pass_key'.*Did you mean passkey.*Choose of nll, repeated"),
        ("", "''"),
        ({"lengths": [512]}, "The task ''"),
        ("choice", "choice:FILE"),
        ("repeated:story.txt", "reads no file"),
        ("nll:nowhere.txt", "nowhere.txt does not exist"),
        ({"task": "passkey", "length": [512]}, "'length'.*Choose of lengths, depths"),
        (
            {"task": "passkey", "lengths": 512},
            r"lengths .* takes a list, such as \(512, 1024\); got 512",
        ),
        (
            {"task": "passkey", "words": "8"},
            "words .* takes a whole number, such as 8; got '8'",
        ),
        ({"task": "nato", "words": True}, "words"),
        ({"task": "nll", "max_tokens": 1.5}, "max_tokens"),
        ({"task": "needle", "haystack": 3}, "haystack .* takes a text"),
        ({"task": "nll", "texts": "a"}, "texts by name; got 'a'"),
        ({"task": "passkey", "lengths": ["512"]}, "lengths"),
        ({"task": "passkey", "depths": ["half"]}, "depths"),
        ({"task": "passkey", "seeds": [0.5]}, "seeds"),
        ({"task": "key_value", "seeds": ["a"]}, "seeds"),
        ({"task": "needle", "needles": ["The key."]}, "needles"),
    ],
)
def test_a_wrong_name_or_knob_is_refused_with_the_right_ones(spec, says):
    with pytest.raises(InputError, match=says):
        named(spec)


def test_every_task_has_a_name():
    assert list(TASKS) == [
        *("nll", "repeated", "passkey", "nato", "needle", "key_value"),
        *("choice", "problems", "chains"),
    ]
