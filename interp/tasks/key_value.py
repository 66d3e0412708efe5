"""A value to be found again by its key in a JSON object."""

import json
import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from interp.errors import InputError
from interp.tasks.haystack import sentences
from interp.tasks.items import Item, Task
from interp.tasks.prompts import build, encode
from interp.tasks.reading import shipped

if TYPE_CHECKING:
    from interp.models import Model

KEY_LENGTH, VALUE_TOKENS = 32, 30
_INSTRUCTION = "Extract the value of a key from this JSON object."


@dataclass(frozen=True)
class KeyValue(Task):
    """Finding values by their keys, after a few examples.

    Judged by accuracy, since small models copy a value well but often begin another
    one; much of a value can be guessed once it has begun. Spans: `pair` is the entry
    that is asked for, `value` its value, `question` what closes the prompt.

    Source:
        AttentionInfluence (arXiv:2505.07293): keys of 32 random characters, values of
        at most 30 tokens, three examples. Theirs fill 4,096 tokens.
    """

    metric: ClassVar = "accuracy"

    pairs: int = 10
    """Entries of the object."""
    shots: int = 3
    """Examples before the question."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One item each."""
    haystack: str | None = field(default=None, kw_only=True)
    """Text whose sentences are the values; None for the shipped."""
    name: str = field(default="key_value", kw_only=True)
    """What the task is called in tables."""

    def __post_init__(self) -> None:
        """Refuse more examples than there are entries."""
        if self.shots < 0 or self.pairs <= self.shots:
            raise InputError(
                f"{self.pairs} entries with {self.shots} examples were asked for; each "
                "example and the question take one. Ask for more pairs."
            )

    def items(self, model: "Model") -> list[Item]:
        """One item for every seed.

        Raises:
            InputError: They are longer than the model's context, or the text has too
                few sentences.
        """
        text = shipped() if self.haystack is None else self.haystack
        values = [
            each
            for each in sentences(text)
            if json.dumps(each, ensure_ascii=False) == f'"{each}"'
            and len(encode(model, each)[0]) <= VALUE_TOKENS
        ]
        if len(values) < self.pairs:
            raise InputError(
                f"{self.pairs} entries were asked for; the text has {len(values)} "
                f"different sentences of up to {VALUE_TOKENS} tokens without quotes. "
                "Ask for fewer pairs, or give more text."
            )
        return [self._item(model, values, seed) for seed in self.seeds]

    def _item(self, model: "Model", values: list[str], seed: int) -> Item:
        rng = np.random.default_rng([seed, self.pairs, self.shots])
        letters = list(string.ascii_lowercase + string.digits)
        keys = ["".join(rng.choice(letters, KEY_LENGTH)) for _ in range(self.pairs)]
        chosen = rng.choice(len(values), self.pairs, replace=False)
        held = {key: values[n] for key, n in zip(keys, chosen, strict=True)}
        *examples, asked = (
            keys[n] for n in rng.permutation(self.pairs)[: self.shots + 1]
        )
        shown = json.dumps(held, indent=0, ensure_ascii=False)
        solved = [f"Key: {key}\nValue: {held[key]}\n\n" for key in examples]
        question = f"Key: {asked}\nValue:"
        prompt = f"{_INSTRUCTION}\n\n{shown}\n\n{''.join(solved)}{question}"
        pair = f'"{asked}": "{held[asked]}"'
        begin = prompt.index(pair)
        end = begin + len(pair)
        marks = {
            "pair": (begin, end),
            "value": (end - 1 - len(held[asked]), end - 1),
            "question": (len(prompt) - len(question), len(prompt)),
        }
        return build(
            model,
            str(seed),
            prompt,
            held[asked],
            marks=marks,
            labels={"seed": seed, "pairs": self.pairs, "shots": self.shots},
        )
