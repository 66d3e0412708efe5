"""Hiding a sentence in a long text, so that all of it fits a number of tokens."""

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from interp.errors import InputError
from interp.tasks.items import Item, Labels, Task
from interp.tasks.prompts import build, chat_frame, encode
from interp.tasks.reading import shipped

if TYPE_CHECKING:
    from interp.models import Model

# A number with a period opens an entry of a list; it ends no sentence.
_END = re.compile(r"(?<!\d)[.!?]+[\"'”’)\]]*(?=\s|$)|[。！？]+[”’」』）]*")  # noqa: RUF001
_CUT_WORD = re.compile(r"(?<=\s)\S{1,40}$")
_CHARACTERS_A_TOKEN = 16  # far more than any prose has


@dataclass(frozen=True)
class Hidden:
    """What is hidden in a haystack, and asked for."""

    sentence: str
    """The needle."""
    answer: str
    """The part of it that has to be copied."""
    question: str
    """Closes the prompt; the answer goes on with it."""
    begins: str = ""
    """The end of the question that a chat model finds as the beginning of its reply."""

    def __post_init__(self) -> None:
        """Refuse an answer that is not hidden, and a beginning that is not asked."""
        if not self.answer or self.answer not in self.sentence:
            raise InputError(
                f"A needle holds its answer; {self.answer!r} is not in "
                f"{self.sentence!r}. Make it a part of the sentence."
            )
        if not self.question.endswith(self.begins):
            raise InputError(
                "The beginning of a reply is the end of the question; "
                f"{self.begins!r} is not that of {self.question!r}. Leave it out."
            )


@dataclass(frozen=True)
class InHaystack(Task):
    """Sentences hidden in a long text, over a grid of lengths and depths.

    The needle comes after the last sentence end at or before the depth. Spans: `needle`
    is the whole sentence, `value` the answer inside it, `question` what closes the
    prompt.
    """

    metric: ClassVar = "exact"

    lengths: tuple[int, ...] = (512, 1024)
    """Tokens of prompt and answer together; never exceeded."""
    depths: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Where in the haystack: 0 is its beginning, 1 its end."""
    seeds: tuple[int, ...] = (0, 1)
    """One item each at every length and depth."""
    haystack: str | None = field(default=None, kw_only=True)
    """Any text with sentences, repeated where it is too short; None for the shipped."""
    chat: bool = field(default=False, kw_only=True)
    """Ask as a user does in the tokenizer's chat template."""
    name: str = field(default="haystack", kw_only=True)
    """What the task is called in tables."""

    @abstractmethod
    def hidden(self, seed: int, rng: np.random.Generator) -> Hidden:
        """What one item hides."""

    def __post_init__(self) -> None:
        """Refuse a grid without a place."""
        grid = {"lengths": self.lengths, "depths": self.depths, "seeds": self.seeds}
        for knob, values in grid.items():
            if not values or len(set(values)) < len(values):
                raise InputError(
                    f"The task {self.name} needs one or more {knob} that differ; got "
                    f"{values}. Give each of them once."
                )
        if min(*self.lengths, *self.seeds) < 0 or not all(
            0 <= depth <= 1 for depth in self.depths
        ):
            raise InputError(
                f"The task {self.name} needs lengths in tokens, depths from 0 to 1 and "
                f"seeds from 0 on; got {self.lengths}, {self.depths} and {self.seeds}. "
                "Write the middle of the haystack as 0.5."
            )

    def items(self, model: "Model") -> list[Item]:
        """One item for every length, depth and seed.

        Raises:
            InputError: A length is beyond the model's context or too short for the
                needle, or the haystack has no sentence.
        """
        haystack = shipped() if self.haystack is None else self.haystack
        return list(self._items(model, haystack))

    def _items(self, model: "Model", haystack: str) -> Iterator[Item]:
        starts = [0, *sentence_ends(haystack)]
        if len(starts) == 1:
            raise InputError(
                f"The task {self.name} hides a sentence between others; the haystack "
                f"of {len(haystack):,} characters has no sentence end. Give prose."
            )
        for length in self.lengths:
            for depth in self.depths:
                for seed in self.seeds:
                    rng = np.random.default_rng([seed, length, round(1e6 * depth)])
                    start = int(rng.choice(starts[:-1]))
                    yield hide(
                        model,
                        f"{length}-{depth}-{seed}",
                        self.hidden(seed, rng),
                        haystack=_from(haystack, start, _CHARACTERS_A_TOKEN * length),
                        depth=depth,
                        length=length,
                        chat=self.chat,
                        labels={"length": length, "depth": depth, "seed": seed},
                    )


def hide(
    model: "Model",
    name: str,
    hidden: Hidden,
    *,
    haystack: str,
    depth: float,
    length: int,
    labels: Labels,
    chat: bool = False,
) -> Item:
    """One item: a needle in as much of a haystack as fits.

    Args:
        model: Its tokenizer counts.
        name: Of the item.
        hidden: The needle and its question.
        haystack: What is cut to fit, behind a word.
        depth: Where in the haystack the needle goes.
        length: Tokens of prompt and answer, never exceeded.
        labels: What the item was made with.
        chat: Ask as a user does in the tokenizer's chat template.

    Raises:
        InputError: The length is beyond the model's context or too short, or there is
            no chat template.
    """
    if model.max_tokens is not None and length > model.max_tokens:
        raise InputError(
            f"A haystack of {length:,} tokens was asked for; {model.name} was made for "
            f"{model.max_tokens:,}. Ask for lengths up to {model.max_tokens}."
        )
    _, offsets = encode(model, haystack)
    opens, question = "", hidden.question
    if chat:
        opens, turns = chat_frame(model)
        asked = question.removesuffix(hidden.begins).rstrip()
        question = f"{asked}{turns}{hidden.begins}"

    def cut(n_tokens: int) -> Item:
        """The item with about the first tokens of the haystack."""
        hay = haystack[: offsets[n_tokens - 1][1]] if n_tokens else ""
        hay = _CUT_WORD.sub("", hay).rstrip()
        ends = [end for end in sentence_ends(hay) if end <= depth * len(hay)]
        before = opens + (f"{hay[: ends[-1]]} " if ends else "")
        after = hay[ends[-1] :] if ends else f" {hay}".rstrip()
        prompt = f"{before}{hidden.sentence}{after}\n\n{question}"
        value = len(before) + hidden.sentence.rindex(hidden.answer)
        marks = {
            "needle": (len(before), len(before) + len(hidden.sentence)),
            "value": (value, value + len(hidden.answer)),
            "question": (len(prompt) - len(question), len(prompt)),
        }
        return build(model, name, prompt, hidden.answer, marks=marks, labels=labels)

    needed = len(cut(0).ids)
    if needed > length:
        raise InputError(
            f"A haystack of {length} tokens was asked for; needle, question and answer "
            f"alone take {needed}. Ask for lengths from {needed} on."
        )
    room = min(length - needed, len(offsets))
    while len((item := cut(room)).ids) > length:
        room -= len(item.ids) - length
    return item


def sentences(text: str) -> list[str]:
    """The different sentences of a text that stand on one line, in order."""
    ends = [0, *sentence_ends(text)]
    found = (text[begin:end].strip() for begin, end in pairwise(ends))
    return [each for each in dict.fromkeys(found) if "\n" not in each]


def sentence_ends(text: str) -> list[int]:
    """Where sentences end: the characters behind their last ones."""
    return [match.end() for match in _END.finditer(text)]


def _from(text: str, start: int, n_characters: int) -> str:
    """A stretch of a text that begins anew when it ends."""
    turned = f"{text[start:].strip()}\n\n{text[:start].strip()}".strip() + "\n\n"
    return (turned * (n_characters // len(turned) + 1))[:n_characters]
