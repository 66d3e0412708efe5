"""What the default model can do: shares that hold with room to spare."""

from functools import cache

import pytest

import interp
from interp.evaluation import evaluate
from interp.tasks import KeyValue, Needle, Passkey, RepeatedTokens, Texts

pytestmark = [pytest.mark.real, pytest.mark.slow]


@cache
def model():
    return interp.load("smollm2-135m")


def test_passkeys_are_found_at_512_and_1024_tokens():
    items = Passkey(seeds=(0,)).items(model())
    exact = evaluate(model(), items)["exact"]

    assert len(items) == 10
    assert exact.where(exact["length"] == 512, drop=True).mean() >= 0.8
    assert exact.where(exact["length"] == 1024, drop=True).mean() >= 0.8


def test_words_and_statements_are_found():
    words = Passkey((400,), (0.3, 0.7), (0,), kind="nato")
    statements = Needle((200,), (0.5,))

    assert evaluate(model(), words.items(model()))["accuracy"].mean() > 0.8
    found = evaluate(model(), statements.items(model()), rouge=True)
    assert found["exact"].mean() > 0.6
    assert found["rouge"].mean() > 0.8


def test_repeated_tokens_are_gone_on_with():
    task = RepeatedTokens(block=64, seeds=(0, 1))
    table = evaluate(model(), task.items(model()))

    assert table["accuracy"].mean() > 0.75
    assert table["nll"].mean() < 2


def test_values_are_copied_once_they_have_begun():
    task = KeyValue(pairs=5, seeds=(0, 1, 2))

    assert evaluate(model(), task.items(model()))["accuracy"].mean() > 0.8


def test_plain_text_is_predicted_better_than_by_guessing():
    task = Texts(max_tokens=128)
    nll = evaluate(model(), task.items(model())[:4])["nll"]

    assert 2 < nll.mean() < 0.5 * task.chance(model())


@pytest.mark.parametrize("kind", ["digits", "nato"])
def test_spans_hold_the_needle_with_the_models_own_tokens(kind):
    tokenizer = model().tokenizer
    for item in Passkey((300,), (0, 0.4, 1), kind=kind).items(model()):
        needle, value = (
            tokenizer.decode(item.ids[slice(*item.spans[name])])
            for name in ("needle", "value")
        )
        assert needle.strip().startswith(("The special magic", "The secret"))
        assert needle.endswith(f"{item.answer}.")
        assert value.strip() == item.answer
