import pytest

from interp.app.tasks import read_tasks
from interp.errors import InputError
from interp.tasks import Choices, Passkey, RepeatedTokens, Texts

TEXTS = {"a": "One. Two.", "b": "Three."}


def test_names_read_the_texts_that_were_given():
    tasks = read_tasks(["nll", "passkey", "repeated"], TEXTS)
    assert tasks["nll"] == Texts(TEXTS)
    assert tasks["passkey"] == Passkey(haystack="One. Two.\n\nThree.")
    assert tasks["repeated"] == RepeatedTokens()


def test_tables_set_knobs_as_mapping_or_as_text():
    table = {"task": "nato", "lengths": [64], "name": "words"}
    written = '{task = "nato", lengths = [64], name = "words"}'
    assert read_tasks([table], TEXTS) == read_tasks([written], TEXTS)
    assert read_tasks([table], TEXTS)["words"].kind == "nato"


def test_a_task_with_a_file_of_its_own_keeps_it(tmp_path):
    (tmp_path / "own.txt").write_text("Mine.")
    tasks = read_tasks(["passkey:own.txt", "nll:own.txt"], TEXTS, tmp_path)
    assert [t.haystack for t in tasks.values() if isinstance(t, Passkey)] == ["Mine."]
    assert tasks["nll-own"] == Texts({"own": "Mine."}, name="nll-own")


def test_questions_come_from_a_file_beside_the_study(tmp_path):
    file = tmp_path / "ice.jsonl"
    file.write_text('{"question": "Ice?", "choices": ["cold", "hot"], "answer": 0}')
    [task] = read_tasks(["choice:ice.jsonl"], TEXTS, tmp_path).values()
    assert isinstance(task, Choices)
    table = {"task": "choice", "source": "ice.jsonl"}
    assert read_tasks([table], TEXTS, tmp_path)["choice"].questions == task.questions


def test_broken_lines_are_named(tmp_path):
    file = tmp_path / "ice.jsonl"
    file.write_text('{"question": "Ice?", "answer": "cold"}\n\n{"question": 3}\n[]\n{')
    with pytest.raises(InputError, match=r"line 3: .*; line 4: .*; line 5: no JSON"):
        read_tasks([f"problems:{file}"], TEXTS)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([], "got none"),
        (["nll", "nll"], "Two tasks are called nll"),
        (["passkeys"], "Did you mean passkey"),
        (["{task ="], "Write a table as TOML does"),
        (["{lengths = [3]}"], "there is none"),
        (["{task = 'passkey', depth = [3]}"], "'depth', which it has not"),
        (["choice"], "Write choice:FILE"),
        (["choice:nowhere.jsonl"], "does not exist"),
    ],
)
def test_what_is_no_task(specs, said):
    with pytest.raises(InputError, match=said):
        read_tasks(specs, TEXTS)
