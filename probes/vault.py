"""Texts that hide several passkeys to a vault, and ask for all of them at their end."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from interp.errors import InputError
from interp.tasks.haystack import sentence_ends
from interp.tasks.passkey import NATO
from interp.tasks.prompts import encode, token_span

if TYPE_CHECKING:
    from interp.models import Model

ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"),
    *("ninth", "tenth", "eleventh", "twelfth", "thirteenth", "fourteenth"),
    *("fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
    "twentieth",
)

Labels = Literal["passkey", "question+passkey"]
"""The passkeys behind the questions, or all that follows the haystack."""

_BEGIN, _END = "This is a long story book: <book>\n", "\n</book>\n\n"
_CHARACTERS_A_TOKEN = 16  # far more than any prose has


@dataclass(frozen=True)
class Vault:
    """How texts with passkeys are made.

    Source:
        DuoAttention (arXiv:2410.10819); the released code begins each haystack at the
        beginning of its books, and pads to a multiple of 16 tokens for its kernel.
    """

    haystack: str
    """Prose, repeated where it is too short; texts begin with any of its sentences."""
    passkeys: int
    """How many are hidden, at depths drawn anew."""
    words: int
    """Of each passkey, drawn from the NATO alphabet with repetitions."""
    labels: str
    """What of the end is labelled, one of `Labels`."""

    def __post_init__(self) -> None:
        """Refuse passkeys that cannot be counted, and empty ones."""
        if not 1 <= self.passkeys <= len(ORDINALS) or self.words < 1:
            raise InputError(
                f"1 to {len(ORDINALS)} passkeys of at least a word can be hidden; got "
                f"passkeys={self.passkeys}, words={self.words}. The paper hides 10 of "
                "32 words."
            )
        if self.labels not in get_args(Labels):
            raise InputError(
                f"Labelled are tokens of passkey or question+passkey; got "
                f"{self.labels!r}. Choose one."
            )
        if not self.haystack.strip():
            raise InputError("Passkeys are hidden in a text; it is empty. Give prose.")

    def text(
        self, model: "Model", length: int, rng: np.random.Generator
    ) -> tuple[tuple[int, ...], np.ndarray]:
        """Token ids, and which of them are labelled.

        Args:
            model: Its tokenizer is used, and its context never exceeded.
            length: Tokens of the haystack; fewer where the context is too short.
            rng: Draws where the haystack begins, the passkeys and their depths.

        Raises:
            InputError: The context has no room for the passkeys, or there is no fast
                tokenizer.
        """
        start = int(rng.choice([0, *sentence_ends(self.haystack)[:-1]]))
        before, after = self.haystack[:start].strip(), self.haystack[start:].strip()
        turned = f"{after}\n\n{before}".strip() + "\n\n"
        n_characters = _CHARACTERS_A_TOKEN * length
        long = (turned * (1 + n_characters // len(turned)))[:n_characters]
        keys = [" ".join(rng.choice(NATO, self.words)) for _ in range(self.passkeys)]
        depths = rng.choice(np.linspace(0.05, 0.95, 1000), self.passkeys, replace=False)
        ends = [end for _, end in encode(model, long)[1]]
        n_hay = min(length, len(ends))
        while True:
            places = [ends[int(n_hay * depth)] for depth in np.sort(depths)]
            hay = [long[a:b] for a, b in pairwise([0, *places, ends[n_hay - 1]])]
            text, stretches = self._composed(hay, keys)
            ids, offsets = encode(model, text)
            excess = len(ids) - (model.max_tokens or len(ids))
            if excess <= 0:
                break
            n_hay -= excess
            if n_hay < 1:
                raise InputError(
                    f"{self.passkeys} passkeys of {self.words} words and their "
                    f"questions take {len(ids) - n_hay - excess:,} tokens; {model.name}"
                    f" was made for {model.max_tokens:,}. Hide fewer or shorter ones."
                )
        labelled = np.zeros(len(ids), dtype=bool)
        for stretch in stretches:
            labelled[slice(*token_span(offsets, *stretch))] = True
        return tuple(ids), labelled

    def _composed(
        self, hay: list[str], keys: list[str]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters of it that are labelled."""
        text = _BEGIN + hay[0]
        for ordinal, key, more in zip(ORDINALS, keys, hay[1:], strict=False):
            text += (
                "\n\nRemember this sequence of words, it is the "
                f"{ordinal} passkey to the vault: {key}\n\n{more}"
            )
        text += _END
        begin, stretches = len(text), []
        for ordinal, key in zip(ORDINALS, keys, strict=False):
            text += f"What is the {ordinal} passkey to the vault?\nPasskey:"
            stretches.append((len(text) + 1, len(text) + 1 + len(key)))
            text += f" {key}\n\n"
        return text, stretches if self.labels == "passkey" else [(begin, len(text))]
