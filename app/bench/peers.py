"""What others offer for the same numbers: eager maps, flash-colsum, FlagAttention."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from interp.app.bench.clock import NotApplicable, require_memory
from interp.app.bench.routes import Arrays, Route, Work, is_linear, is_plain
from interp.kernels.rules import AttentionCall

PEERS = ("eager", "flash-colsum", "flag-attn")
"""Names of the routes."""

EAGER_BYTES = 16
"""Of the eager map, for each pair of query and key of each head, at its peak."""


def peer_routes(
    call: AttentionCall, lse: Tensor, basic: Callable[[], Arrays]
) -> list[Route]:
    """Every peer.

    Args:
        call: What they are given.
        lse: Its row log-sum-exp, for those that take one.
        basic: Trusted entropy, clipped distance and received attention.
    """
    total = partial(_total, call, basic)
    return [
        Route(
            "eager",
            "eager PyTorch: the map, then entropy, clipped distance, received",
            partial(_eager, call),
            dict,
            basic,
        ),
        Route(
            "flash-colsum",
            "flash-colsum: received, mean over heads, no lse needed",
            partial(_flash_colsum, call),
            lambda mean: {"mean": mean.float()},
            lambda: {"mean": total()["total"].mean(1) / call.mask.query_length},
        ),
        Route(
            "flag-attn",
            "FlagAttention: forward with total attention",
            partial(_flag_forward, call),
            lambda result: {"total": result[2]},
            total,
        ),
        Route(
            "flag-attn",
            "FlagAttention: total attention, lse given",
            partial(_flag_total, call, lse),
            lambda result: {"total": result},
            total,
        ),
    ]


def _total(call: AttentionCall, basic: Callable[[], Arrays]) -> dict[str, Tensor]:
    """Sum of the weights that each key receives from the queries behind it."""
    received = basic()["received"]
    return {"total": received * _behind(call, received.device)}


def _behind(call: AttentionCall, device: torch.device) -> Tensor:
    """Number of queries that see each key under the plain causal rule."""
    return torch.arange(call.mask.key_length, 0, -1, device=device)


def _eager(call: AttentionCall) -> Work:
    """The map as transformers makes it, and reductions as one writes them."""
    if not (is_linear(call) and call.mask.is_band and call.mask.ahead == 0):
        raise NotApplicable("it is written for causal attention without extras")
    if call.score.sink_logits is not None:
        raise NotApplicable("it is written for attention without learned sinks")
    q, length, device = call.query, call.mask.query_length, call.query.device
    require_memory(EAGER_BYTES * call.n_heads * length**2, "its map", device)

    def work() -> dict[str, Tensor]:
        key = call.key.repeat_interleave(call.group_size, dim=1)
        logits = q @ key.transpose(2, 3) * call.score.scale
        at = torch.arange(length, device=device)
        back = at[:, None] - at
        near = back.clamp(max=10).float()
        hidden = back < 0
        if call.mask.behind is not None:
            hidden |= back > call.mask.behind
        logits.masked_fill_(hidden, -torch.inf)
        weights = logits.softmax(-1, dtype=torch.float32)
        del logits
        return {
            "received": weights.sum(2) / (~hidden).sum(0),
            "waad": (weights * near).sum(-1),
            "entropy": torch.special.entr(weights).sum(-1),
        }

    return work


def _flash_colsum(call: AttentionCall) -> Work:
    package: Any = _installed("flash_colsum", "pip install flash-colsum")
    _require_plain(call)
    if call.n_batch != 1:
        raise NotApplicable("its causal kernel takes one sample")
    if call.query.shape[3] > 64:
        raise NotApplicable("its causal kernel reads the first 64 dimensions of a head")
    key = call.key.repeat_interleave(call.group_size, dim=1)
    scale = call.score.scale
    return lambda: package.flash_colsum(call.query, key, scale=scale, is_causal=True)


def _flag_forward(call: AttentionCall) -> Work:
    package = _flag_attn(call)
    q, k, v = (t.contiguous() for t in (call.query, call.key, call.value))
    return lambda: package.flash_attention(
        q,
        k,
        v,
        causal=True,
        sm_scale=call.score.scale,
        return_log_normalizer=True,
        return_total_attention=True,
    )


def _flag_total(call: AttentionCall, lse: Tensor) -> Work:
    total = _flag_attn(call).total.total_attention
    q, k, own = call.query.contiguous(), call.key.contiguous(), lse.contiguous()
    return lambda: total(q, k, own, causal=True, sm_scale=call.score.scale)


def _flag_attn(call: AttentionCall) -> Any:
    where = "github.com/FlagOpen/FlagAttention"
    package: Any = _installed("flag_attn", where)
    _require_plain(call)
    # Before this function the kernels read past the end of unexpanded keys.
    if not hasattr(package.total, "total_attention"):
        raise NotApplicable(f"it is a version without grouped heads; see {where}")
    width = call.query.shape[3]
    if width not in (16, 32, 64, 128) or call.value.shape[3] != width:
        raise NotApplicable(f"it takes heads of 16, 32, 64 or 128; these have {width}")
    return package


def _installed(module: str, where: str) -> Any:
    if find_spec(module) is None:
        raise NotApplicable(f"not installed; see {where}")
    return import_module(module)


def _require_plain(call: AttentionCall) -> None:
    if call.query.device.type != "cuda":
        raise NotApplicable("it needs a GPU")
    if not is_plain(call):
        raise NotApplicable("it knows the plain causal rule only")
    if call.score.sink_logits is not None:
        raise NotApplicable("it knows no learned sinks")
