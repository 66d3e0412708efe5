"""Running a model on the items of a task, as it stands inside any `with` block."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformers import GenerationConfig

from interp.errors import InputError, UnsupportedModelError
from interp.forward import evaluating, lean
from interp.metrics import rouge_recall, score
from interp.models import Model
from interp.tasks.items import Item

VARIABLES = {
    "nll": ("nats", "negative log-likelihood per scored token"),
    "accuracy": ("fraction", "scored tokens that have the largest logit"),
    "exact": ("fraction", "greedy decoding gives exactly the answer"),
    "choice": ("fraction", "the right answer has the lowest NLL per token"),
    "kl": ("nats", "KL divergence from the base model per scored token"),
    "agreement": ("fraction", "scored tokens where the base model chooses the same"),
    "rouge": ("fraction", "words of the answer that greedy decoding gives"),
}
"""Unit and long name of everything that `evaluate` measures."""


def evaluate(
    model: Model,
    items: Sequence[Item],
    *,
    base: Sequence[Tensor] | None = None,
    rouge: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Every metric of every item.

    Args:
        model: A decoder-only language model; run as it stands, interventions included.
        items: Of one task.
        base: Logits of the unchanged model for each item, as `logits` gives them.
        rouge: Also decode greedily, at most twice as many tokens as the answer has.
        progress: Called after each item with how many are done, and of how many.

    Returns:
        Over `item` (names), with a coordinate for each label: `nll`, `accuracy` and
        `exact`; `choice` if any item has wrong answers, and NaN for those that have
        none; `kl` and `agreement` with `base`; `rouge` if asked for, and NaN for items
        without a text as answer.

    Raises:
        InputError: No items, two of one name, or one longer than the context.
        UnsupportedModelError: The model is no decoder-only language model.
        ShapeError: `base` belongs to other items.

    Source:
        ROUGE recall as in Retrieval Heads (arXiv:2404.15574).
    """
    names = [item.name for item in items]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"An evaluation needs one or more items of different names; got {names}. "
            "Take them from one task, task.items(model)."
        )
    if base is not None and len(base) != len(items):
        raise InputError(
            f"The base logits of {len(items)} items are needed; got {len(base)}. Make "
            "them with interp.evaluation.logits, one for each item."
        )
    for item in items:
        check(model, item)
    rows: list[dict[str, float]] = []
    for n, item in enumerate(items):
        row = score(logits(model, item), item, None if base is None else base[n])
        if item.others:
            wrong = (score(logits(model, each), each)["nll"] for each in item.others)
            row["choice"] = float(row["nll"] < min(wrong))
        if rouge:
            row["rouge"] = rouge_recall(decode(model, item), item.answer)
        rows.append(row)
        if progress is not None:
            progress(n + 1, len(items))
    measured = {
        name: ("item", [row.get(name, np.nan) for row in rows], attrs_of(name))
        for name in VARIABLES
        if any(name in row for row in rows)
    }
    return xr.Dataset(measured, coordinates(items))


def logits(model: Model, item: Item) -> Tensor:
    """Logits of the rows that predict an item's scored tokens, and only of these.

    Args:
        model: A decoder-only language model; run as it stands.
        item: Its ids are read once, all of them.

    Returns:
        `[scored, vocab]` in the model's type, on its device, without gradient.

    Raises:
        InputError: The item is longer than the model's context.
        UnsupportedModelError: The model is no decoder-only language model.
    """
    check(model, item)
    with torch.no_grad(), evaluating(model.module):
        return forward(model, item)[0]


def forward(model: Model, item: Item, copies: int = 1) -> Tensor:
    """One forward over an item, as everything stands: modes, gradients, interventions.

    Args:
        model: A decoder-only language model.
        item: Its ids are read once.
        copies: Samples of the batch, all alike.

    Returns:
        `[copy, scored, vocab]`: logits of the rows that predict the scored tokens.
    """
    begin, end = item.scored
    wanted = len(item.ids) - begin + 1
    ids = torch.tensor([item.ids], device=model.device).expand(copies, -1)
    output = model.module(input_ids=ids, **lean(model.module, wanted))
    return output.logits[:, -wanted:][:, : end - begin]


def decode(model: Model, item: Item) -> str:
    """What greedy decoding makes of an item's prompt.

    Args:
        model: A decoder-only language model with a tokenizer; run as it stands.
        item: At most twice as many tokens as it scores are generated.

    Raises:
        InputError: The model has no tokenizer, or the item does not fit its context.
        UnsupportedModelError: The model is no decoder-only language model.
    """
    check(model, item)
    if model.tokenizer is None:
        raise InputError(
            f"What {model.name} generates is to be read; it came without a tokenizer. "
            "Pass tokenizer=..., or leave rouge out."
        )
    begin, end = item.scored
    prompt = torch.tensor([item.ids[:begin]], device=model.device)
    # What is not said here is taken from the model's own settings.
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=2 * (end - begin),
        pad_token_id=0,
    )
    module: Any = model.module
    with torch.no_grad(), evaluating(module):
        ids = module.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy
        )
    return str(model.tokenizer.decode(ids[0, begin:], skip_special_tokens=True))


def check(model: Model, item: Item) -> None:
    """Refuse a model that cannot do an item, before it is run.

    Raises:
        InputError: The item is longer than the model's context.
        UnsupportedModelError: The model is no decoder-only language model.
    """
    require_decoder(model)
    limit = model.max_tokens
    if limit is not None and len(item.ids) > limit:
        raise InputError(
            f"Item {item.name} has {len(item.ids):,} tokens; {model.name} was made for "
            f"{limit:,}. Make the items for this model, task.items(model)."
        )


def require_decoder(model: Model) -> None:
    """Refuse a model that does no tasks.

    Raises:
        UnsupportedModelError: It is no decoder-only language model.
    """
    generates = model.anatomy.capability("generation")
    if not generates.available or model.module.config.is_encoder_decoder:
        why = generates.reason
        if generates.available:
            why = f"this {model.anatomy.model_type} model also has an encoder"
        raise UnsupportedModelError(
            f"A task is done by a decoder-only language model; {why}. Choose one, such "
            "as Llama, Qwen, Gemma or GPT-2."
        )


def attrs_of(name: str) -> dict[str, str]:
    """Unit and long name of a measure."""
    units, long_name = VARIABLES[name]
    return {"units": units, "long_name": long_name}


def coordinates(items: Sequence[Item]) -> Mapping[str, tuple[str, np.ndarray]]:
    """Names and labels; what an item lacks is "" or NaN."""
    labels = dict.fromkeys(label for item in items for label in item.labels)
    columns = {label: [item.labels.get(label) for item in items] for label in labels}
    columns = {"item": [item.name for item in items], **columns}
    return {name: ("item", _column(values)) for name, values in columns.items()}


def _column(values: Sequence[str | int | float | None]) -> np.ndarray:
    if any(isinstance(value, str) for value in values):
        # As objects: Zarr has no stable type of fixed-length strings.
        return np.array(["" if v is None else str(v) for v in values], dtype=object)
    return np.array([np.nan if value is None else value for value in values])
