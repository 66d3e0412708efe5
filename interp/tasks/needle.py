"""An unlikely statement to be found again in a long text."""

from dataclasses import dataclass, field

import numpy as np

from interp.errors import InputError
from interp.tasks.haystack import Hidden, InHaystack


def _needle(question: str, beginning: str, answer: str) -> Hidden:
    """A statement whose beginning the prompt gives away."""
    return Hidden(
        f"{beginning} {answer}.",
        answer,
        f"Question: {question}\nAnswer: {beginning}",
        beginning,
    )


NEEDLES = (
    _needle(
        "What is the cook's cure for seasickness?",
        "The cook's cure for seasickness is",
        "a slice of raw ginger under a wool cap",
    ),
    _needle(
        "Where is the silver of Velmora?",
        "The silver of Velmora is",
        "under the third step of the bakery",
    ),
    _needle(
        "What is the clockmaker of Tarn known for?",
        "The clockmaker of Tarn is known for",
        "walking backwards around a frozen pond",
    ),
)
"""Nobody could guess these."""


@dataclass(frozen=True)
class Needle(InHaystack):
    """Finding a statement again in a long text; seeds take turns with the needles.

    Source:
        Retrieval heads (arXiv:2404.15574); the needles are ours, and the prompt gives
        the beginning of the answer, so that a small base model knows what to copy.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """One item each at every length and depth."""
    needles: tuple[Hidden, ...] = NEEDLES
    """What is hidden; at least one."""
    name: str = field(default="needle", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a task that hides nothing."""
        super().__post_init__()
        if not self.needles:
            raise InputError(
                "A needle task hides statements; needles is empty. Give at least one, "
                "or leave it out."
            )

    def hidden(self, seed: int, rng: np.random.Generator) -> Hidden:
        """The needle whose turn it is."""
        return self.needles[seed % len(self.needles)]
