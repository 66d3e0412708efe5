"""Plain text, whose next token is to be predicted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from interp.errors import InputError
from interp.tasks.items import Item, Task
from interp.tasks.prompts import opening
from interp.tasks.reading import shipped

if TYPE_CHECKING:
    from interp.models import Model


@dataclass(frozen=True)
class Texts(Task):
    """Predicting every token of plain texts from those before it.

    A long text becomes stretches of equal length, to a token; each is read on its own
    and opens as a text does.
    """

    metric: ClassVar = "nll"

    texts: Mapping[str, str] = field(default_factory=lambda: {"lighthouse": shipped()})
    """Texts by name; the shipped one by default."""
    max_tokens: int = 512
    """Tokens of a stretch at most; fewer where the context is shorter."""
    name: str = field(default="nll", kw_only=True)
    """What the task is called in tables."""

    def __post_init__(self) -> None:
        """Refuse no text, and stretches that leave nothing to predict."""
        if not self.texts or self.max_tokens < 4:
            raise InputError(
                "Predicting text needs at least one text and stretches of 4 tokens or "
                f"more; got {len(self.texts)} texts and max_tokens={self.max_tokens}."
                " The usual stretch is 512."
            )

    def items(self, model: "Model") -> list[Item]:
        """One item for every stretch, such as "lighthouse-0".

        Raises:
            InputError: The model has no tokenizer, or a text has fewer than two tokens.
        """
        return [
            item
            for name, text in self.texts.items()
            for item in self._items(model, name, text)
        ]

    def _items(self, model: "Model", name: str, text: str) -> Iterator[Item]:
        found = stretches(model, name, text, self.max_tokens)
        for number, tokens in enumerate(found):
            yield Item(
                name=f"{name}-{number}",
                ids=tokens,
                scored=(1, len(tokens)),
                labels={"text": name, "stretch": number},
            )


def stretches(
    model: "Model", name: str, text: str, longest: int, max_tokens: int | None = None
) -> list[tuple[int, ...]]:
    """A text as stretches of tokens, equally long to a token.

    Args:
        model: Its tokenizer is used; what this puts in front of a text opens each
            stretch.
        name: Of the text, in errors.
        text: What is cut.
        longest: Tokens of a stretch at most; fewer where the context is shorter.
        max_tokens: Keep at most this many tokens of the text.

    Raises:
        InputError: The model has no tokenizer, or a text has fewer than two tokens.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(
            f"The text {name} needs a tokenizer; {model.name} came without one. "
            "Pass tokenizer=..., or choose the task of repeated tokens."
        )
    first = opening(tokenizer)
    ids = tokenizer(text, verbose=False)["input_ids"][len(first) : max_tokens]
    limit = min(longest, model.max_tokens or longest) - len(first)
    parts = np.array_split(ids, max(1, -(-len(ids) // limit)))
    found = [(*first, *map(int, part)) for part in parts]
    if len(found[-1]) < 2:
        raise InputError(
            f"The text {name} has {len(found[-1])} tokens; nothing is left to "
            "predict. Give at least a few words."
        )
    return found
