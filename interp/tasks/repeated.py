"""Random tokens that repeat, with what a detector needs to know of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from interp.capture import Capture, TokenEdges
from interp.errors import InputError
from interp.tasks.items import Item, Task
from interp.tasks.prompts import opening

if TYPE_CHECKING:
    from interp.models import Model

BLOCK, COPIES = 256, 4


@dataclass(frozen=True)
class RepeatedRandom:
    """A block of distinct random tokens, several times over."""

    ids: tuple[int, ...]
    """Token ids: the prefix, then the copies."""
    block_length: int
    """Tokens of one copy, fewer than asked where the context is short."""
    copies: int
    """How many times the block stands in `ids`."""
    seed: int
    """Of the random numbers."""
    prefix_length: int = 0
    """Tokens before the first copy."""
    note: str = ""
    """Why the block is shorter than asked; empty if it is not."""

    @property
    def capture(self) -> Capture:
        """The edges of this task, summed over all earlier copies."""
        return Capture((), TokenEdges(copies=self.copies - 1), residual=False)

    @property
    def attrs(self) -> dict[str, str | int]:
        """What the trace's root says of it; detectors read this."""
        return {
            "task": "repeated_random",
            "block_length": self.block_length,
            "copies": self.copies,
            "prefix_length": self.prefix_length,
            "seed": self.seed,
        }


def repeated_random(
    vocab_size: int,
    *,
    block: int = BLOCK,
    copies: int = COPIES,
    seed: int = 0,
    avoid: Iterable[int] = (),
    prefix: Iterable[int] = (),
    max_tokens: int | None = None,
) -> RepeatedRandom:
    """Random tokens that repeat, so that only their repetition can be learned.

    The tokens of a block differ from one another, so that every query has exactly one
    target in each earlier copy.

    Args:
        vocab_size: Ids are below it.
        block: Tokens of one copy; made shorter where the context or the vocabulary
            cannot hold it, and then `note` says so.
        copies: How many times the block stands, at least 2.
        seed: Same seed and arguments, same ids.
        avoid: Ids left out, such as special tokens.
        prefix: Ids put before the first copy, such as a beginning-of-text token.
        max_tokens: Length that the model's context allows; None for any.

    Raises:
        InputError: Fewer than 2 copies, or no room for two tokens a copy.

    Source:
        RazorAttention (arXiv:2407.15891) draws with replacement; we do not.
    """
    if copies < 2:
        raise InputError(
            f"Repeated random tokens need at least 2 copies; got {copies}. The usual "
            f"number is {COPIES}."
        )
    prefix = tuple(prefix)
    allowed = np.setdiff1d(np.arange(vocab_size), [*avoid, *prefix])
    limits = {f"asked for {block}": block}
    limits[f"{allowed.size} tokens may be used"] = allowed.size
    if max_tokens is not None:
        fits = (max_tokens - len(prefix)) // copies
        limits[f"{max_tokens} tokens hold {copies} copies of {max(fits, 0)}"] = fits
    reason, length = min(limits.items(), key=lambda limit: limit[1])
    if length < 2:
        raise InputError(
            "Repeated random tokens need a block of at least 2; "
            f"{reason}. Allow more tokens, or make fewer copies."
        )
    drawn = np.random.default_rng(seed).choice(allowed, size=length, replace=False)
    note = f"the block has {length} tokens, not {block}: {reason}"
    return RepeatedRandom(
        ids=(*prefix, *drawn.tolist() * copies),
        block_length=length,
        copies=copies,
        seed=seed,
        prefix_length=len(prefix),
        note=note if length < block else "",
    )


def repeated_random_for(
    model: "Model",
    *,
    block: int = BLOCK,
    copies: int = COPIES,
    seed: int = 0,
    max_tokens: int | None = None,
) -> RepeatedRandom:
    """The task for a model: its vocabulary, context, and the token that opens a text.

    Args:
        model: Its special tokens are left out, but stand in front where the tokenizer
            puts one in front of every text.
        block: Tokens of one copy.
        copies: How many times the block stands.
        seed: Same seed and model, same ids.
        max_tokens: Length allowed, if less than the model's context.

    Raises:
        InputError: The model has no vocabulary, or no room for the task.
    """
    anatomy, tokenizer = model.anatomy, model.tokenizer
    if anatomy.vocab_size is None:
        raise InputError(
            "Repeated random tokens need a vocabulary; this "
            f"{anatomy.model_type} model has none. Leave the task out."
        )
    vocab_size, special, prefix = anatomy.vocab_size, set[int](), []
    if tokenizer is not None:
        # Embedding tables are often padded beyond the tokens that exist.
        vocab_size = min(vocab_size, len(tokenizer))
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        prefix = opening(tokenizer)
    limits = [n for n in (anatomy.max_positions, max_tokens) if n is not None]
    return repeated_random(
        vocab_size,
        block=block,
        copies=copies,
        seed=seed,
        avoid=special,
        prefix=prefix,
        max_tokens=min(limits, default=None),
    )


@dataclass(frozen=True)
class RepeatedTokens(Task):
    """Going on with a block of random tokens once it has been read.

    Scored are the second and later copies, without the second copy's first token:
    nothing says yet that the block repeats. The span `block` is the first copy.
    """

    metric: ClassVar = "accuracy"

    block: int = 64
    """Tokens of one copy, fewer where the context is short."""
    copies: int = COPIES
    """How many times the block stands."""
    seeds: tuple[int, ...] = tuple(range(8))
    """One item each; with fewer than six no p-value can be below 0.05."""
    name: str = field(default="repeated", kw_only=True)
    """What the task is called in tables."""

    def items(self, model: "Model") -> list[Item]:
        """One item for every seed.

        Raises:
            InputError: The model has no vocabulary, or no room for the task.
        """
        return [self._item(model, seed) for seed in self.seeds]

    def _item(self, model: "Model", seed: int) -> Item:
        made = repeated_random_for(
            model, block=self.block, copies=self.copies, seed=seed
        )
        begin = made.prefix_length + made.block_length
        return Item(
            name=str(seed),
            ids=made.ids,
            scored=(begin + 1, len(made.ids)),
            spans={"block": (made.prefix_length, begin)},
            labels={"seed": seed, "block_length": made.block_length},
        )
