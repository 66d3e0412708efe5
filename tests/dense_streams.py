"""Full and mixed stream as one batch of two, with dense maps, in tests' own words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAME = "dense_two_streams"


def dense_distance(
    module: Any,
    gates: Tensor,
    ids: list[int],
    labelled: Tensor,
    *,
    first: int,
    recent: int,
    gated: Callable[[int], bool] = lambda layer: True,
) -> Tensor:
    """Mean squared difference of the two streams' last states, at labelled tokens."""
    n = len(ids)
    back = torch.arange(n)[:, None] - torch.arange(n)
    near = (back >= 0) & ((back < recent) | (torch.arange(n) < first))

    def attention(
        owner: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        **given: Any,
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        logits = query @ key.mT * given["scaling"]
        if given.get("softcap") is not None:
            logits = given["softcap"] * (logits / given["softcap"]).tanh()
        visible = (back >= 0)[None] if mask is None else mask[..., :n] > -1

        def weights(seen: Tensor) -> Tensor:
            scores = logits.masked_fill(~seen, -torch.inf)
            if given.get("s_aux") is None:
                return scores.softmax(-1)
            sink = given["s_aux"].to(scores)[None, :, None, None]
            sink = sink.expand(*scores.shape[:3], 1)
            return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]

        full = (weights(visible) @ value)[:1]
        local = (weights(visible & near) @ value)[1:]
        layer = owner.layer_idx
        gate = gates[layer] if gated(layer) else torch.zeros_like(gates[layer])
        gate = gate.repeat_interleave(group)[:, None, None]
        mixed = gate * full.detach() + (1 - gate) * local
        return torch.cat([full, mixed]).transpose(1, 2), None

    with _attending(module, attention):
        states = module.model(torch.tensor([ids, ids])).last_hidden_state
    return (states[0, labelled] - states[1, labelled]).square().mean()


@contextmanager
def _attending(module: Any, attention: Callable[..., Any]) -> Iterator[None]:
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    before = module.config._attn_implementation_internal
    module.config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        module.config._attn_implementation_internal = before
        AttentionInterface._global_mapping.pop(NAME)
        AttentionMaskInterface._global_mapping.pop(NAME)
