"""Questions with several answers to choose from."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from interp.errors import InputError
from interp.tasks.items import Item, Task
from interp.tasks.prompts import build, question_prompt
from interp.tasks.reading import Source, read_questions, text_of

if TYPE_CHECKING:
    from interp.models import Model

LIKE = '{"question": "What is ice?", "choices": ["water", "stone"], "answer": 0}'


@dataclass(frozen=True)
class Choice:
    """One question, and the answers to choose from."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Place of the right one among the choices, from 0."""

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> "Choice":
        """Read what a line holds.

        Raises:
            InputError: Something is missing or means nothing.
        """
        choices, answer = entry.get("choices"), entry.get("answer")
        if not isinstance(choices, list | tuple) or not all(
            isinstance(each, str) and each.strip() for each in choices
        ):
            raise InputError("no list of texts 'choices'")
        if len(set(choices)) < max(2, len(choices)):
            raise InputError(f"'choices' must be two or more that differ: {choices}")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise InputError(
                f"'answer' is {answer!r}, not 0 to {len(choices) - 1}: the place of "
                "the right one among the choices"
            )
        words = tuple(each.strip() for each in choices)
        return cls(text_of(entry, "question"), words, answer)


@dataclass(frozen=True)
class Choices(Task):
    """Choosing the right answer: the one with the lowest NLL per token.

    The span `question` is the question.

    Args:
        source: A file of JSON lines with "question", "choices" and "answer" (the place
            of the right one, from 0), or a list of such mappings.
        name: What the task is called in tables.

    Raises:
        InputError: Lines of the file cannot be read; they are named.
    """

    metric: ClassVar = "choice"

    source: InitVar[Source]
    name: str = field(default="choice", kw_only=True)
    """What the task is called in tables."""
    questions: tuple[tuple[int, Choice], ...] = field(init=False, repr=False)
    """Every question with the number of its line, from 1."""

    def __post_init__(self, source: Source) -> None:
        """Read the questions."""
        questions = read_questions(source, Choice.parse, LIKE)
        object.__setattr__(self, "questions", questions)

    def chance(self, model: "Model") -> float:
        """Share of right answers that guessing gives."""
        return fmean(1 / len(each.choices) for _, each in self.questions)

    def items(self, model: "Model") -> list[Item]:
        """One item for every question, named by its line.

        Raises:
            InputError: A question is longer than the model's context.
        """
        return [self._item(model, *question) for question in self.questions]

    def _item(self, model: "Model", number: int, asked: Choice) -> Item:
        prompt, marks = question_prompt(asked.question)
        wrong = [c for n, c in enumerate(asked.choices) if n != asked.answer]
        return build(
            model,
            str(number),
            prompt,
            asked.choices[asked.answer],
            marks=marks,
            labels={"line": number, "n_choices": len(asked.choices)},
            others=wrong,
        )
