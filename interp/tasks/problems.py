"""Problems whose answer has to be written."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from interp.tasks.items import Item, Task
from interp.tasks.prompts import build, question_prompt
from interp.tasks.reading import Source, read_questions, text_of

if TYPE_CHECKING:
    from interp.models import Model

LIKE = '{"question": "What is 2 + 3?", "answer": "5"}'


@dataclass(frozen=True)
class Problem:
    """One question and its answer."""

    question: str
    answer: str

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> "Problem":
        """Read what a line holds.

        Raises:
            InputError: Something is missing.
        """
        return cls(text_of(entry, "question"), text_of(entry, "answer"))


@dataclass(frozen=True)
class Problems(Task):
    """Writing exactly the answer to a question.

    The span `question` is the question.

    Args:
        source: A file of JSON lines with "question" and "answer", or a list of such
            mappings.
        name: What the task is called in tables.

    Raises:
        InputError: Lines of the file cannot be read; they are named.
    """

    metric: ClassVar = "exact"

    source: InitVar[Source]
    name: str = field(default="problems", kw_only=True)
    """What the task is called in tables."""
    questions: tuple[tuple[int, Problem], ...] = field(init=False, repr=False)
    """Every problem with the number of its line, from 1."""

    def __post_init__(self, source: Source) -> None:
        """Read the problems."""
        questions = read_questions(source, Problem.parse, LIKE)
        object.__setattr__(self, "questions", questions)

    def items(self, model: "Model") -> list[Item]:
        """One item for every problem, named by its line.

        Raises:
            InputError: A problem is longer than the model's context.
        """
        return [self._item(model, *question) for question in self.questions]

    def _item(self, model: "Model", number: int, asked: Problem) -> Item:
        prompt, marks = question_prompt(asked.question)
        labels = {"line": number}
        return build(
            model, str(number), prompt, asked.answer, marks=marks, labels=labels
        )
