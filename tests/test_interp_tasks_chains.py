"""Chains of thought: what is asked, what is given, what the model itself writes."""

import json

import pytest
import torch
from tiny_models import tiny, tiny_tokenizer
from tiny_tokenizers import merging_tokenizer, reader

import interp
from interp.errors import InputError, StorageError, UnsupportedModelError
from interp.tasks import Chains
from interp.tasks.reading import shipped

READER = reader(merging_tokenizer())
GIVEN = {"prompt": "What is 2 + 3?", "response": " It is 5."}


@pytest.fixture(scope="module")
def model():
    return interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())


def lines(path, *entries):
    path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    return path


def decoded(item, span):
    return READER.tokenizer.decode(item.ids[slice(*item.spans[span])])


def greedy(module, ids, n):
    """Tokens that follow, each from a forward over all before it."""
    ids = list(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(module(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-n:]


def test_a_response_that_is_given_is_scored_to_its_end():
    (item,) = Chains([GIVEN]).items(READER)

    assert decoded(item, "prompt") == "What is 2 + 3?"
    assert decoded(item, "response") == " It is 5."
    assert item.scored == item.spans["response"]
    assert item.spans["prompt"][1] == item.scored[0]
    assert item.labels == {"line": 1, "is_generated": 0}


def test_a_question_gets_its_instruction_and_frame():
    asked = {"question": "What is ice?", "response": " Water."}
    (item,) = Chains([asked], instruction="Think.").items(READER)

    wanted = "Question: Think.\n\nWhat is ice?\nAnswer:"
    assert decoded(item, "prompt") == wanted


def test_a_chat_template_frames_the_question_unless_it_is_left_out():
    tokenizer = merging_tokenizer.__wrapped__()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|reply|>"
    )
    own = reader(tokenizer)
    asked = {"question": "What is ice?", "response": "Water."}

    def prompt(**options):
        (item,) = Chains([asked], instruction="", **options).items(own)
        return str(tokenizer.decode(list(item.ids[slice(*item.spans["prompt"])])))

    assert prompt() == "<|user|>What is ice?<|reply|>"
    assert prompt(chat=False) == "Question: What is ice?\nAnswer:"


def test_chains_are_named_by_their_lines(tmp_path):
    path = tmp_path / "chains.jsonl"
    path.write_text(f"\n{json.dumps(GIVEN)}\n\n{json.dumps(GIVEN)}\n")

    assert [item.name for item in Chains(path).items(READER)] == ["2", "4"]


def test_without_a_source_questions_are_shipped():
    task = Chains()

    asked = [chain.asked for _, chain in task.chains]
    assert asked == shipped("questions.txt").splitlines()
    assert all(chain.response is None for _, chain in task.chains)
    assert task.attrs["chains"].startswith("sha256:")


def test_a_response_of_its_own_is_what_the_model_says(model):
    task = Chains([{"prompt": "w5 w9 w12"}], max_new_tokens=6, temperature=0)
    (item,) = task.items(model)

    assert item.ids[:3] == (5, 9, 12)
    wanted = greedy(model.module, item.ids[:3], 6)
    wanted = wanted[: wanted.index(2) + 1] if 2 in wanted else wanted
    assert list(item.ids[3:]) == wanted
    assert item.labels["is_generated"] == 1


def test_sampling_is_the_same_in_every_run_and_another_for_every_seed(model):
    asked = [{"prompt": "w5 w9 w12"}] * 2

    def written(seed):
        task = Chains(asked, max_new_tokens=8, temperature=5.0, seed=seed)
        return [item.ids for item in task.items(model)]

    one, again, other = written(0), written(0), written(1)
    assert one == again != other
    assert one[0] != one[1]  # each chain has random numbers of its own


def test_tokens_are_kept_and_gone_on_with(model, tmp_path):
    task = Chains([{"prompt": "w5 w9 w12"}], max_new_tokens=8, temperature=5.0)
    (whole,) = task.items(model, folder=tmp_path / "a")
    (log,) = (tmp_path / "a").iterdir()
    kept = log.read_text().splitlines()
    assert list(map(int, kept[1:])) == list(whole.ids[3:])

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / log.name).write_text("\n".join(kept[:3]) + "\n")
    told = []
    (resumed,) = task.items(
        model, folder=tmp_path / "b", progress=lambda *said: told.append(said)
    )
    assert resumed.ids == whole.ids
    assert told[0] == ("1", 3, 8)
    with pytest.raises(StorageError, match="another prompt, model, seed or options"):
        Chains([{"prompt": "w7"}]).items(model, folder=tmp_path / "a")


def test_a_short_context_shortens_what_is_written_and_refuses_what_is_given(model):
    n_prompt = model.max_tokens - 2
    asked = {"prompt": " ".join(["w5"] * n_prompt)}
    (item,) = Chains([asked], temperature=0).items(model)
    assert n_prompt < len(item.ids) <= model.max_tokens

    given = asked | {"response": " w5 w5 w5"}
    with pytest.raises(InputError, match=r"Chain 1 has 65 tokens; .* made for 64"):
        Chains([given]).items(model)


def test_a_model_that_writes_nothing_is_refused():
    bert = interp.load(tiny("bert")[0], tokenizer=tiny_tokenizer())
    with pytest.raises(UnsupportedModelError, match="asked to generate"):
        Chains([{"prompt": "w5 w9"}]).items(bert)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({}, "needs one of 'question' and 'prompt'"),
        ({"question": "a", "prompt": "b"}, "needs one of 'question' and 'prompt'"),
        ({"question": " "}, "'question' is ' ', not a text"),
        ({"prompt": "a", "response": 5}, "'response' is 5, not a text"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path, entry, says):
    path = lines(tmp_path / "chains.jsonl", GIVEN, entry)
    with pytest.raises(InputError, match=f"line 2: {says}"):
        Chains(path)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -1}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(InputError, match="Usual are 256 and"):
        Chains([GIVEN], **options)
