"""Two streams through one model: full attention, and a gated mixture of full and local.

Each head of the mixed stream gives `gate * full + (1 - gate) * local` to the output
projection: what the head gives in the full stream, and its own local attention, which
sees the first tokens and the recent ones. Only the gates have a gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from interp.anatomy import Site
from interp.forward import evaluating
from interp.hooks import blocks
from interp.kernels.rules import AttentionCall, ScoreRule
from interp.models import Model
from interp.replacing import computed_by
from interp.tap import attend

ROWS = 128
"""Queries of a block of local attention."""

# Nothing is drawn: the caller's random numbers are left alone.
_again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class TwoStreams:
    """The two streams of a decoder-only model, over one text at a time.

    Memory grows with the text, never with its square; the full stream's outputs are
    kept for the length of a step.
    """

    model: Model
    """Run as it is; interventions have no effect on it."""
    first: int
    """Tokens that local attention sees where the text begins."""
    recent: int
    """Tokens that it sees up to the query's own, itself included."""
    recompute: bool = False
    """Run each block again in the backward pass: less memory, more time."""

    def is_gated(self, site: Site) -> bool:
        """Whether the layer sees more than what is recent: else nothing is to choose.

        A layer's own window or chunk holds for its local attention too.
        """
        spans = [span for span in (site.window, site.chunk) if span is not None]
        return min(spans, default=self.recent + 1) > self.recent

    def slope(
        self,
        gates: Float[Tensor, "layer kv_head"],
        ids: Sequence[int],
        labelled: Bool[Tensor, " token"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "layer kv_head"]]:
        """How far apart the streams end, and the derivative of that by the gates.

        Args:
            gates: In [0, 1]; those of layers that are not gated are not read.
            ids: A text.
            labelled: Its tokens that count.

        Returns:
            Squared difference of the states behind the final norm, mean over channels
            and labelled tokens; and the derivative, 0 where a gate is not read.
        """
        module, anatomy = self.model.module, self.model.anatomy
        tokens = torch.tensor([list(ids)], device=self.model.device)
        here = labelled.to(tokens.device)
        gates = gates.detach().requires_grad_()
        outputs: dict[int, Tensor] = {}

        def full(site: Site, call: AttentionCall) -> Tensor:
            outputs[site.layer] = attend(call)[0]
            return outputs[site.layer]

        def mixed(site: Site, call: AttentionCall) -> Tensor:
            local = local_attention(call, self.first, self.recent)
            if not self.is_gated(site):
                return local
            gate = gates[site.layer].repeat_interleave(call.group_size)
            gate = gate[:, None, None].to(local)
            return gate * outputs[site.layer] + (1 - gate) * local

        with ExitStack() as stack:
            stack.enter_context(evaluating(module))
            stack.enter_context(_frozen(module))
            with torch.no_grad(), computed_by(module, anatomy, full):
                goal = _states(module, tokens)[0, here]
            # To its end: the backward pass may run blocks again.
            stack.enter_context(torch.enable_grad())
            stack.enter_context(computed_by(module, anatomy, mixed))
            if self.recompute:
                stack.enter_context(_running_again(blocks(module, anatomy, "self")))
            reached = _states(module, tokens)[0, here]
            distance = (reached - goal).square().mean()
            (slope,) = torch.autograd.grad(distance, gates)
        return distance.detach(), slope


def local_attention(
    call: AttentionCall, first: int, recent: int
) -> Float[Tensor, "batch head query d_value"]:
    """Attention to the first keys and the recent ones, of those that the call shows.

    Differentiable. Blocks of queries, of which none is kept for the backward pass:
    memory is linear in the number of tokens.

    Args:
        call: Causal self-attention without a cache or padding.
        first: Keys seen where the text begins.
        recent: Keys seen up to the query's own, itself included.
    """
    n_tokens = call.mask.query_length
    parts = []
    for q0 in range(0, n_tokens, ROWS):
        q1 = min(q0 + ROWS, n_tokens)
        near = max(q0 - recent + 1, 0)
        keys = torch.cat([torch.arange(min(first, near)), torch.arange(near, q1)])
        keys = keys.to(call.query.device)
        distance = torch.arange(q0, q1, device=keys.device)[:, None] - keys
        seen = (distance >= 0) & ((distance < recent) | (keys < first))
        own = call.mask.tile(q0, q1, 0, q1)
        seen = seen if own is None else seen & own.to(keys.device)[..., keys]
        bias = call.score.position_bias
        bias = None if bias is None else bias[..., q0:q1, :][..., keys]
        rows = partial(_attention, call.score, keys, seen, bias)
        parts.append(_again(rows, call.query[:, :, q0:q1], call.key, call.value))
    return torch.cat(parts, 2)


def _attention(
    score: ScoreRule,
    keys: Int[Tensor, " chosen"],
    seen: Bool[Tensor, "..."],
    bias: Tensor | None,
    query: Float[Tensor, "batch head query d"],
    key: Float[Tensor, "batch kv_head key d"],
    value: Float[Tensor, "batch kv_head key d_value"],
) -> Float[Tensor, "batch head query d_value"]:
    """Dense attention of few queries to few keys; every query sees one of them."""
    group, dtype = query.shape[1] // key.shape[1], value.dtype
    key, value = (each[:, :, keys].repeat_interleave(group, 1) for each in (key, value))
    query, key, value = (each.to(_wide(dtype)) for each in (query, key, value))
    logits = score.scale * query @ key.mT
    if score.softcap is not None:
        logits = score.softcap * torch.tanh(logits / score.softcap)
    if bias is not None:
        logits = logits + bias
    logits = logits.masked_fill(~seen, -torch.inf)
    if score.sink_logits is not None:
        sink = score.sink_logits.to(logits)[:, None, None]
        logits = torch.cat([logits, sink.expand(*logits.shape[:3], 1)], -1)
    weights = logits.softmax(-1)[..., : len(keys)]
    return (weights @ value).to(dtype)


def _states(module: Any, tokens: Tensor) -> Float[Tensor, "batch token d_model"]:
    """What leaves the final norm."""
    base = module.base_model
    if base is module:  # Llama 4 says so of the model with its head
        base = getattr(module, "model", module)
    states = base(tokens, use_cache=False).last_hidden_state
    return states.to(_wide(states.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Parameters take no gradient within the block."""
    taking = [each for each in module.parameters() if each.requires_grad]
    for each in taking:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in taking:
            each.requires_grad_(True)


@contextmanager
def _running_again(parts: list[nn.Module]) -> Iterator[None]:
    """Keeps of each part's forward its inputs only, and runs it again when needed."""
    own = [vars(part).get("forward") for part in parts]
    for part in parts:
        part.forward = partial(_again, part.forward)
    try:
        yield
    finally:
        for part, forward in zip(parts, own, strict=True):
            del part.forward
            if forward is not None:
                part.forward = forward
