"""Attention forwards that return the row log-sum-exp: what ratios are to."""

from collections.abc import Callable
from typing import Any

import torch

from interp.app.bench.clock import NotApplicable
from interp.app.bench.routes import Arrays, Route, Work, is_linear, is_plain
from interp.kernels import fused
from interp.kernels.rules import AttentionCall

FORWARDS = ("cudnn", "flash", "flex", "fused")
"""Names of the routes."""


def forwards(call: AttentionCall, expected: Callable[[], Arrays]) -> list[Route]:
    """Every forward there is.

    Args:
        call: What to attend.
        expected: The row log-sum-exp that is trusted.
    """

    def route(name: str, words: str, prepare: Callable[[AttentionCall], Work]) -> Route:
        return Route(name, words, lambda: prepare(call), _lse(call), expected)

    return [
        route("cudnn", "forward, cuDNN", _cudnn),
        route("flash", "forward, PyTorch's flash attention", _flash),
        route("flex", "forward, FlexAttention compiled", _flex),
        route("fused", "forward, as interp's tap runs it", _fused),
    ]


def _lse(call: AttentionCall) -> Callable[[Any], Arrays]:
    shape = call.query.shape[:3]
    return lambda result: {"lse": result[1].reshape(shape).float()}


def _cudnn(call: AttentionCall) -> Work:
    _require_cuda(call)
    if not is_plain(call):
        raise NotApplicable("it knows the plain causal rule only")
    q, k, v, scale = call.query, call.key, call.value, call.score.scale
    op = torch.ops.aten._scaled_dot_product_cudnn_attention
    return lambda: op(q, k, v, None, True, 0.0, True, False, scale=scale)


def _flash(call: AttentionCall) -> Work:
    q, k, v, scale = call.query, call.key, call.value, call.score.scale
    mask = call.mask
    if is_plain(call):
        if q.device.type == "cpu":
            on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return lambda: on_cpu(q, k, v, 0.0, True, scale=scale)
        op = torch.ops.aten._scaled_dot_product_flash_attention
        return lambda: op(q, k, v, 0.0, True, False, scale=scale)
    _require_cuda(call)
    _require_window(call)
    length, behind = mask.query_length, mask.behind
    heads_last = [t.transpose(1, 2) for t in (q, k, v)]
    windowed = torch.ops.aten._flash_attention_forward
    lengths = (None, None, length, length)
    options = {"window_size_left": behind, "window_size_right": 0, "scale": scale}
    return lambda: windowed(*heads_last, *lengths, 0.0, True, False, **options)


def _flex(call: AttentionCall) -> Work:
    _require_cuda(call)
    _require_window(call)
    from torch.nn.attention import flex_attention as flex

    length, behind = call.mask.query_length, call.mask.behind

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        if behind is None:
            return query >= key
        return (query >= key) & (query - key <= behind)

    make_mask = torch.compile(flex.create_block_mask)  # eagerly it is query x key
    blocks = make_mask(visible, None, None, length, length, device=call.query.device)
    attend = torch.compile(flex.flex_attention)
    options: dict[str, Any] = {"block_mask": blocks, "scale": call.score.scale}
    options["enable_gqa"] = call.group_size > 1
    if not hasattr(flex, "AuxRequest"):  # torch before 2.9
        options["return_lse"] = True
        return lambda: attend(call.query, call.key, call.value, **options)
    options["return_aux"] = flex.AuxRequest(lse=True)

    def work() -> Any:
        output, extra = attend(call.query, call.key, call.value, **options)
        return output, extra.lse

    return work


def _fused(call: AttentionCall) -> Work:
    if call.score.softcap is not None:
        raise NotApplicable("no fused kernel knows a softcap")
    return lambda: fused.attend(call)


def _require_cuda(call: AttentionCall) -> None:
    if call.query.device.type != "cuda":
        raise NotApplicable("it needs a GPU")


def _require_window(call: AttentionCall) -> None:
    mask = call.mask
    aligned = mask.query_offset == mask.key_offset
    if not (is_linear(call) and mask.is_band and mask.ahead == 0 and aligned):
        raise NotApplicable("it knows the causal rule, with or without a window, only")
