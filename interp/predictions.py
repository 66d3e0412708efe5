"""What a model expects next, at every row, without the logits of all rows at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import UnsupportedModelError
from interp.forward import evaluating, lean
from interp.hooks import on_output
from interp.models import Model

CHUNK = 1 << 21
"""Logits that are worked on at a time."""


@contextmanager
def final_states(model: Model) -> Iterator[list[Tensor]]:
    """The states that a model's head is given, of each forward inside the block.

    Args:
        model: A language model.

    Yields:
        A list that grows by `[batch, token, d_model]` with every forward.

    Raises:
        UnsupportedModelError: The model has no head of its own.
    """
    states: list[Tensor] = []
    with on_output(_body(model), states.append):
        yield states


def expectations(
    model: Model, states: Tensor, tokens: list[int]
) -> dict[str, np.ndarray]:
    """How sure a model was before it read each token, and how wrong.

    The model's own head is run on stretches of the states.

    Args:
        model: A decoder-only language model.
        states: `[token, d_model]`, the final state before each token: that of the token
            in front of it.
        tokens: Ids of as many tokens.

    Returns:
        `entropy` of the distribution and `nll` of the token, in nats, over tokens.

    Raises:
        UnsupportedModelError: The model has no head of its own.
    """
    module, body = model.module, _body(model)
    targets = torch.tensor(tokens, device=model.device)
    any_token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    step = max(1, CHUNK // (model.anatomy.vocab_size or CHUNK))
    # Made first: what stays, made between logits that go, would leave holes in memory.
    found = {name: np.empty(len(tokens)) for name in ("entropy", "nll")}
    with torch.no_grad(), evaluating(module):
        for rows in (slice(n, n + step) for n in range(0, len(tokens), step)):
            given, own = states[None, rows], targets[rows, None]
            # The head is whatever the model does behind its body: scaling, capping.
            with on_output(body, lambda _state, given=given: given):
                logits = module(any_token, **lean(module, len(own))).logits[0]
            log_p = logits.to(torch.promote_types(logits.dtype, torch.float32))
            log_p.sub_(log_p.logsumexp(-1, keepdim=True))
            found["nll"][rows] = -log_p.gather(1, own)[:, 0].double().cpu()
            log_p.clamp_(min=torch.finfo(log_p.dtype).min)  # 0 times infinity is none
            entropy = -torch.linalg.vecdot(log_p.exp(), log_p)
            found["entropy"][rows] = entropy.double().cpu()
            del logits, log_p
    return found


def _body(model: Model) -> Any:
    body = model.module.base_model
    if body is model.module:
        raise UnsupportedModelError(
            f"What a model expects next was asked for; {model.name} is loaded without "
            "a head that says so. Load it as a language model."
        )
    return body
