"""A number, or words, to be found again in a long text."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from interp.errors import InputError
from interp.tasks.haystack import Hidden, InHaystack

NATO = (
    *("Alpha", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel"),
    *("India", "Juliet", "Kilo", "Lima", "Mike", "November", "Oscar", "Papa"),
    *("Quebec", "Romeo", "Sierra", "Tango", "Uniform", "Victor", "Whiskey", "Xray"),
    *("Yankee", "Zulu"),
)


@dataclass(frozen=True)
class Passkey(InHaystack):
    """Finding a random number or random words again in a long text.

    Source:
        DuoAttention (arXiv:2410.10819) hides ten passkeys of 32 words of the NATO
        alphabet at once, with repetitions; ours hides one, of words that differ, so
        that every word has one that follows it.
    """

    kind: Literal["digits", "nato"] = "digits"
    """A number of five digits, or words of the NATO alphabet."""
    words: int = 8
    """How many words, of kind "nato"."""
    name: str = field(default="passkey", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a kind that there is not, or more words than the alphabet has."""
        super().__post_init__()
        if self.kind not in ("digits", "nato"):
            raise InputError(
                f"A passkey is of kind digits or nato; got {self.kind!r}. Choose one."
            )
        if not 1 <= self.words <= len(NATO):
            raise InputError(
                f"A passkey of {self.words} words was asked for; they are drawn from "
                f"{len(NATO)}, each once. Ask for 1 to {len(NATO)}."
            )

    def hidden(self, seed: int, rng: np.random.Generator) -> Hidden:
        """A passkey drawn anew."""
        if self.kind == "digits":
            answer = str(rng.integers(10_000, 100_000))
            asks, says = "What is the special magic number", "The special magic number"
            verb = "is"
        else:
            answer = " ".join(rng.choice(NATO, self.words, replace=False))
            asks, says, verb = "What are the secret words", "The secret words", "are"
        says = f"{says} for Orlen {verb}"
        question = f"Question: {asks} for Orlen?\nAnswer: {says}"
        return Hidden(f"{says} {answer}.", answer, question, says)
