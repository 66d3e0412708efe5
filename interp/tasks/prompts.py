"""From a prompt and its answer to tokens, with every named stretch found exactly."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from interp.errors import InputError
from interp.tasks.items import Item, Labels, Spans

if TYPE_CHECKING:
    from interp.models import Model


def build(
    model: "Model",
    name: str,
    prompt: str,
    answer: str,
    *,
    marks: Spans | None = None,
    labels: Labels | None = None,
    others: Sequence[str] = (),
) -> Item:
    """An item from text.

    Args:
        model: Its tokenizer is used.
        name: Of the item.
        prompt: What the model reads, without a space at its end.
        answer: What it has to go on with; a space is put between the two.
        marks: Stretches of the prompt, begin and end in characters, that become spans.
        labels: What the item was made with.
        others: Wrong answers.

    Raises:
        InputError: The model has no tokenizer that tells offsets, or the item is
            longer than its context.
    """
    ids, offsets = encode(model, prompt)
    spans = {each: token_span(offsets, *mark) for each, mark in (marks or {}).items()}

    def answered(name: str, text: str) -> Item:
        target = continuation(model, prompt, ids, f" {text}")
        n_tokens = len(ids) + len(target)
        if model.max_tokens is not None and n_tokens > model.max_tokens:
            raise InputError(
                f"Item {name} has {n_tokens:,} tokens; {model.name} was made for "
                f"{model.max_tokens:,}. Make it shorter, or choose another model."
            )
        scored = (len(ids), n_tokens)
        return Item(name, (*ids, *target), scored, spans, labels or {}, text)

    wrong = (answered(f"{name}-other-{n}", text) for n, text in enumerate(others, 1))
    return replace(answered(name, answer), others=tuple(wrong))


def question_prompt(question: str) -> tuple[str, Spans]:
    """A prompt that asks a question, and where the question stands in it."""
    before = "Question: "
    marks = {"question": (len(before), len(before) + len(question))}
    return f"{before}{question}\nAnswer:", marks


def chat_frame(model: "Model") -> tuple[str, str]:
    """What a chat template writes before a user's message, and from it to the reply.

    Raises:
        InputError: The tokenizer has no chat template.
    """
    tokenizer = _tokenizer(model)
    if tokenizer.chat_template is None:
        raise InputError(
            f"A chat was asked for; the tokenizer of {model.name} has no chat template."
            " Leave chat out, or choose a model that was made for it."
        )
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    said = [{"role": "user", "content": mark}]
    text = str(
        tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    )
    before, _, behind = text.partition(mark)
    # What the tokenizer puts in front of every text would stand there twice.
    return before.removeprefix(str(tokenizer.decode(opening(tokenizer)))), behind


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token that a tokenizer puts in front of every text, if it does."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [each for each in tokenizer("a")["input_ids"][:1] if each in special]


def encode(model: "Model", text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text, and the characters that each token covers.

    Tokens that the tokenizer puts in front of every text are among them, and cover no
    character.

    Raises:
        InputError: The model has no tokenizer that tells offsets.
    """
    encoded = _tokenizer(model)(text, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def continuation(
    model: "Model", prompt: str, ids: Sequence[int], text: str
) -> list[int]:
    """Token ids with which a text goes on behind the tokens of a prompt.

    A model that generates never takes a token back. So where the border lies inside a
    token of the whole, the text is tokenized apart.

    Args:
        model: Its tokenizer is used.
        prompt: What stands before.
        ids: The prompt's tokens.
        text: What follows, with its leading space.
    """
    tokenizer = _tokenizer(model)
    # Not apart where it can be helped: some tokenizers begin every text with a space.
    whole = tokenizer(prompt + text, verbose=False)["input_ids"]
    if whole[: len(ids)] == list(ids):
        return whole[len(ids) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def token_span(
    offsets: Sequence[tuple[int, int]], begin: int, end: int
) -> tuple[int, int]:
    """The tokens that cover a stretch of characters, also those across its borders.

    Args:
        offsets: Characters that each token covers, begin and end.
        begin: First character of the stretch.
        end: Behind its last character.

    Returns:
        Begin and end among the tokens.

    Raises:
        InputError: No token covers any of it.
    """
    inside = [
        token
        for token, (first, last) in enumerate(offsets)
        if max(first, begin) < min(last, end)
    ]
    if not inside:
        raise InputError(
            f"Characters {begin} to {end} of a prompt have to be found among its "
            "tokens; none covers them. Choose a text that the tokenizer can read."
        )
    return inside[0], inside[-1] + 1


def _tokenizer(model: "Model") -> PreTrainedTokenizerBase:
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        came = "came without one" if tokenizer is None else "has one in plain Python"
        raise InputError(
            "A task made of text needs a tokenizer that tells which characters a token "
            f"covers; {model.name} {came}. Pass tokenizer=... with a fast one, or "
            "choose the task of repeated tokens."
        )
    return tokenizer
