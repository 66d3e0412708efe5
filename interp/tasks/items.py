"""What a task is made of: tokens, and which of them the model has to predict."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from interp.errors import InputError

if TYPE_CHECKING:
    from interp.models import Model

Spans = Mapping[str, tuple[int, int]]
"""Named stretches: begin and end."""
Labels = Mapping[str, str | int | float]

LONG = 1000
"""Characters of JSON above which a knob is recorded as its SHA-256."""


@dataclass(frozen=True)
class Item:
    """One prompt with its answer."""

    name: str
    """Unique within a task and the same in every run, such as "512-0.25-3"."""
    ids: tuple[int, ...]
    """Token ids of prompt and answer."""
    scored: tuple[int, int]
    """Begin and end in `ids` of the tokens whose prediction is measured."""
    spans: Spans = field(default_factory=dict)
    """Named stretches of `ids`."""
    labels: Labels = field(default_factory=dict)
    """What the item was made with, such as "length", "depth" and "seed"."""
    answer: str = ""
    """The text that `scored` holds; empty where it is no answer."""
    others: tuple["Item", ...] = ()
    """The same question with a wrong answer, which its `scored` holds."""

    def __post_init__(self) -> None:
        """Refuse a stretch that lies outside the tokens."""
        n_tokens = len(self.ids)
        begin, end = self.scored
        if not 1 <= begin < end <= n_tokens:
            raise InputError(
                f"Item {self.name} is to be scored on tokens {begin} to {end} of its "
                f"{n_tokens}. Score at least one, and not the first, which nothing "
                "predicts."
            )
        for name, (first, last) in self.spans.items():
            if not 0 <= first < last <= n_tokens:
                raise InputError(
                    f"The span {name} of item {self.name} holds tokens {first} to "
                    f"{last} of its {n_tokens}. Name at least one that exists."
                )


class Task(Protocol):
    """Something a model is asked to do, and how it is judged.

    Each is a frozen dataclass whose fields are its knobs, and writes `items`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    """What it is called in tables."""
    metric: ClassVar[Literal["nll", "accuracy", "exact", "choice"]]
    """What it is judged by, as `interp.evaluation.evaluate` names it."""

    @property
    def is_better_high(self) -> bool:
        """Whether a better model has a higher value of the metric."""
        return self.metric != "nll"

    @property
    def attrs(self) -> dict[str, Any]:
        """All knobs, ready for JSON; a long one stands as the SHA-256 of its JSON."""
        knobs = {
            each.name: _recorded(getattr(self, each.name)) for each in fields(self)
        }
        return {"task": type(self).__name__, **knobs}

    def chance(self, model: "Model") -> float:
        """Value of the metric that a guess among all tokens gives; nats for "nll".

        Raises:
            InputError: The model has no vocabulary.
        """
        if self.metric == "exact":
            return 0.0
        size = model.anatomy.vocab_size
        if size is None:
            raise InputError(
                f"The task {self.name} needs a vocabulary to guess from; {model.name} "
                "has none. Choose a language model."
            )
        return math.log(size) if self.metric == "nll" else 1 / size

    def items(self, model: "Model") -> list[Item]:
        """The items, the same in every run, sized to the model's context.

        Raises:
            InputError: They do not fit the model.
        """
        ...


def _recorded(knob: Any) -> Any:
    text = json.dumps(knob, default=_parts, sort_keys=True)
    if len(text) > LONG:
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return json.loads(text)


def _parts(knob: Any) -> Any:
    """What JSON can hold of a value that it does not know."""
    if isinstance(knob, Mapping):
        return dict(knob)
    return {each.name: getattr(knob, each.name) for each in fields(knob)}
