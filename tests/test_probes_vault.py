"""Texts with passkeys: what is hidden, where, and what is labelled."""

import re

import numpy as np
import pytest
from tiny_tokenizers import dummy_space_tokenizer, merging_tokenizer, reader

from interp.errors import InputError
from interp.probes.vault import Vault
from interp.tasks.passkey import NATO
from interp.tasks.reading import shipped

VAULT = Vault(shipped(), 3, 4, "passkey")
HIDDEN = r"it is the (\w+) passkey to the vault: ([A-Za-z ]+)\n"
ASKED = r"What is the (\w+) passkey to the vault\?\nPasskey: ([A-Za-z ]+)\n"


def made(vault=VAULT, length=80, seed=0, tokenizer=None, max_tokens=4096):
    model = reader(tokenizer or merging_tokenizer(), max_tokens)
    ids, labelled = vault.text(model, length, np.random.default_rng(seed))
    return model.tokenizer, ids, labelled


@pytest.mark.parametrize("seed", range(3))
def test_every_hidden_passkey_is_asked_for_with_its_answer(seed):
    tokenizer, ids, _ = made(seed=seed)
    text = tokenizer.decode(ids)
    hidden, asked = re.findall(HIDDEN, text), re.findall(ASKED, text)

    assert hidden == asked
    assert [ordinal for ordinal, _ in hidden] == ["first", "second", "third"]
    for _, key in hidden:
        assert len(key.split()) == 4
        assert set(key.split()) <= set(NATO)
    assert text.index("</book>") > text.rindex("it is the third")
    assert text.index("</book>") < text.index("What is the first")


@pytest.mark.parametrize("tokenizer", [merging_tokenizer(), merging_tokenizer(True)])
def test_labelled_are_the_passkeys_at_the_end(tokenizer):
    _, ids, labelled = made(tokenizer=tokenizer)
    asked = re.findall(ASKED, tokenizer.decode(ids))
    words = tokenizer.decode(np.array(ids)[labelled])

    # A token may hold characters beyond a border, never less than the passkey.
    assert [key for _, key in asked] == re.findall(
        r"[A-Z][a-z]+(?: [A-Z][a-z]+){3}", words
    )
    assert not labelled[: len(ids) // 2].any()


def test_labelled_may_be_all_that_follows_the_haystack():
    vault = Vault(shipped(), 3, 4, "question+passkey")
    tokenizer, ids, labelled = made(vault)
    begin = labelled.argmax()

    assert labelled[begin:].all()
    assert tokenizer.decode(ids[begin:]).lstrip().startswith("What is the first")
    assert ids == made()[1]


def test_the_haystack_has_the_length_that_is_asked_for():
    tokenizer, ids, _ = made(length=200)
    text = re.sub(rf"\n\nRemember[^\n]*{HIDDEN}\n", "", tokenizer.decode(ids))
    hay = text.removeprefix("This is a long story book: <book>\n").split("\n</book>")[0]
    # Where passkeys cut it, a word may take other tokens.
    assert 190 <= len(tokenizer(hay)["input_ids"]) <= 215


def test_a_short_text_is_repeated():
    vault = Vault("The lamp was lit. ", 1, 1, "passkey")
    tokenizer, ids, _ = made(vault, length=300)
    assert tokenizer.decode(ids).count("lamp was lit") > 20


def test_depths_and_beginnings_are_drawn():
    places = {made(seed=seed)[1] for seed in range(4)}
    assert len(places) == 4
    assert made(seed=1)[1] == made(seed=1)[1]


@pytest.mark.parametrize("tokenizer", [merging_tokenizer(), dummy_space_tokenizer()])
def test_the_context_is_never_exceeded(tokenizer):
    needed = len(made(length=1, tokenizer=tokenizer)[1])
    limit = needed + 20
    ids = made(length=900, tokenizer=tokenizer, max_tokens=limit)[1]
    assert limit - 10 <= len(ids) <= limit


def test_passkeys_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"made for 60\. Hide fewer or shorter"):
        made(max_tokens=60)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"passkeys": 0}, "1 to 20 passkeys"),
        ({"passkeys": 21}, "1 to 20 passkeys"),
        ({"words": 0}, "of at least a word"),
        ({"labels": "all"}, "got 'all'"),
        ({"haystack": " \n"}, "it is empty"),
    ],
)
def test_what_hides_nothing_is_refused(options, says):
    plain = {"haystack": "A.", "passkeys": 1, "words": 1, "labels": "passkey"}
    with pytest.raises(InputError, match=says):
        Vault(**(plain | options))
