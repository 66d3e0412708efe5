"""Chains of thought: questions, and what a model writes to answer them."""

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from interp.errors import InputError
from interp.generation import generate
from interp.inputs import prepare
from interp.tasks.items import Item, Task
from interp.tasks.prompts import chat_frame, continuation, encode, question_prompt
from interp.tasks.reading import Source, read_questions, shipped, text_of

if TYPE_CHECKING:
    from interp.models import Model

LIKE = '{"question": "What is 2 + 3?"}, or {"prompt": "2 + 3?", "response": " 5"}'
QUESTIONS = "questions.txt"
"""Shipped questions, one to a line."""
INSTRUCTION = "Reason step by step, and put the final answer within \\boxed{}."


@dataclass(frozen=True)
class Chain:
    """What is asked, and what was answered where that is known."""

    asked: str
    """A question, or a whole prompt."""
    is_prompt: bool
    """Whether it is read as it stands: nothing is put around it."""
    response: str | None
    """None for the model's own."""

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> "Chain":
        """Read what a line holds; spaces around a prompt or response belong to it.

        Raises:
            InputError: Something is missing, or is no text.
        """
        if ("prompt" in entry) == ("question" in entry):
            raise InputError("needs one of 'question' and 'prompt'")
        name = "prompt" if "prompt" in entry else "question"
        for each in [name, *({"response"} & entry.keys())]:
            text_of(entry, each)
        return cls(entry[name], name == "prompt", entry.get("response"))


@dataclass(frozen=True)
class Chains(Task):
    """Thinking in writing: the spans are `prompt` and `response`, which is scored.

    A response is the model's own, or is given. Generated ones are made anew whenever
    items are asked for, the same each time.

    Args:
        source: A file of JSON lines, or a list of such mappings, with "question"
            (the chat template or a plain frame is put around it) or "prompt" (read as
            it stands), and "response" where it is known; None takes the shipped
            questions.
        name: What the task is called in tables.

    Raises:
        InputError: Lines of the file cannot be read; they are named. Or an option that
            means nothing.

    Source:
        Sampled as in arXiv:2510.13554: temperature 0.7, asked for steps and a box.
    """

    metric: ClassVar = "nll"

    source: InitVar[Source | None] = None
    instruction: str = INSTRUCTION
    """Put before each question."""
    chat: bool = True
    """Use the chat template, of models that have one."""
    max_new_tokens: int = 256
    """Tokens of a response at most, fewer where the context is short."""
    temperature: float = 0.7
    """Of sampling; 0 always takes the likeliest token."""
    seed: int = 0
    """Of sampling; each chain has random numbers of its own."""
    name: str = field(default="chains", kw_only=True)
    """What the task is called in tables."""
    chains: tuple[tuple[int, Chain], ...] = field(init=False, repr=False)
    """Every chain with the number of its line, from 1."""

    def __post_init__(self, source: Source | None) -> None:
        """Read the lines; refuse responses of no length."""
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise InputError(
                "A chain has at least one token and is sampled at a temperature from 0 "
                f"on; got max_new_tokens={self.max_new_tokens} and temperature="
                f"{self.temperature}. Usual are 256 and 0.7."
            )
        if source is None:
            source = [{"question": line} for line in shipped(QUESTIONS).splitlines()]
        chains = read_questions(source, Chain.parse, LIKE, what="chains")
        object.__setattr__(self, "chains", chains)

    def items(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Item]:
        """One item for every chain, named by its line.

        Args:
            model: Writes the responses that are not given.
            folder: Keeps every token as it comes, so that a run goes on where another
                was interrupted.
            progress: Told of every token: the item, how many there are, of how many.

        Raises:
            InputError: A chain is longer than the model's context.
            UnsupportedModelError: Responses are asked of a model that writes none.
        """
        return [
            self._item(model, number, chain, folder, progress)
            for number, chain in self.chains
        ]

    def _item(
        self,
        model: "Model",
        number: int,
        chain: Chain,
        folder: Path | None,
        progress: Callable[[str, int, int], None] | None,
    ) -> Item:
        name, prompt = str(number), self._prompt(model, chain)
        ids, _ = encode(model, prompt)
        if chain.response is None:
            log = None if folder is None else folder / f"{self.name}-{name}.tokens"
            most = self.max_new_tokens
            if model.max_tokens is not None:
                most = max(min(most, model.max_tokens - len(ids)), 1)
            response = generate(
                model,
                prepare(model, ids),
                most,
                log=log,
                seed=int(
                    np.random.SeedSequence([self.seed, number]).generate_state(1)[0]
                ),
                tell=progress and (lambda done: progress(name, len(done), most)),
                **self._sampling,
            )
        else:
            response = continuation(model, prompt, ids, chain.response)
        n_tokens = len(ids) + len(response)
        if model.max_tokens is not None and n_tokens > model.max_tokens:
            raise InputError(
                f"Chain {name} has {n_tokens:,} tokens; {model.name} was made for "
                f"{model.max_tokens:,}. Make it shorter, or choose another model."
            )
        return Item(
            name,
            (*ids, *response),
            scored=(len(ids), n_tokens),
            spans={"prompt": (0, len(ids)), "response": (len(ids), n_tokens)},
            labels={"line": number, "is_generated": int(chain.response is None)},
        )

    @property
    def _sampling(self) -> dict[str, Any]:
        """Options of generation."""
        if self.temperature == 0:
            return {}
        return {"do_sample": True, "temperature": self.temperature}

    def _prompt(self, model: "Model", chain: Chain) -> str:
        if chain.is_prompt:
            return chain.asked
        asked = f"{self.instruction}\n\n{chain.asked}".strip()
        if self.chat and getattr(model.tokenizer, "chat_template", None):
            before, behind = chat_frame(model)
            return f"{before}{asked}{behind}"
        return question_prompt(asked)[0]
