"""Attention output and row log-sum-exp from the fastest fused kernel there is.

A rule that the kernel cannot express goes through it in blocks of rows, each with a
mask tile of its own, so that memory stays linear in the number of tokens.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_flash_attention,
)

from interp.kernels.rules import AttentionCall

ROWS = 512
"""Queries of a block whose mask is a tile."""

Output = Float[Tensor, "batch head query d_value"]
Lse = Float[Tensor, "batch head query"]


def attend(call: AttentionCall) -> tuple[Output, Lse] | None:
    """Output and log-sum-exp (nats, learned sink excluded) of an attention call.

    Rows that see no key give zeros and -inf.

    Returns:
        None for what no fused kernel computes (a softcap): see `weighted.attend`.
    """
    if call.score.softcap is not None or call.query.dtype == torch.float64:
        return None
    mask = call.mask
    if mask.key_padding is None and mask.query_padding is None:
        output, lse = _attend(call)
    else:
        output, lse = _empty(call)
        for sample, queries, keys in call.samples():
            own_output, own_lse = _attend(call.narrow(sample, queries, keys))
            output[sample, :, queries] = own_output[0]
            lse[sample, :, queries] = own_lse[0]
    if call.score.sink_logits is not None:
        sink = call.score.sink_logits.to(lse)[None, :, None]
        output = output * torch.sigmoid(lse - sink)[..., None].to(output.dtype)
    return output, lse


def _empty(call: AttentionCall) -> tuple[Tensor, Tensor]:
    shape = call.query.shape[:3]
    output = call.query.new_zeros(*shape, call.value.shape[3])
    return output, output.new_full(shape, -torch.inf, dtype=torch.float32)


def _attend(call: AttentionCall) -> tuple[Tensor, Tensor]:
    mask, bias = call.mask, call.score.position_bias
    width = call.value.shape[3]
    call = _of_one_width(call)
    if bias is None and (mask.is_square_causal or mask.is_full):
        causal = mask.is_square_causal and mask.query_length > 1
        output, lse = _kernel(
            call.query, call.key, call.value, call.score.scale, causal
        )
    elif _is_flash_band(call):
        output, lse = _flash_band(call)
    else:
        output, lse = _row_blocks(call)
    return output[..., :width], lse


def _of_one_width(call: AttentionCall) -> AttentionCall:
    """The call padded to one head width for query, key and value, a multiple of 8."""
    width = -(-max(call.query.shape[3], call.value.shape[3]) // 8) * 8
    padded = (
        tensor
        if tensor.shape[3] == width
        else torch.nn.functional.pad(tensor, (0, width - tensor.shape[3]))
        for tensor in (call.query, call.key, call.value)
    )
    query, key, value = padded
    return replace(call, query=query, key=key, value=value)


def _row_blocks(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Any rule, by its mask tiles."""
    mask, bias = call.mask, call.score.position_bias
    output, lse = _empty(call)
    for q0 in range(0, mask.query_length, ROWS):
        q1 = min(q0 + ROWS, mask.query_length)
        k0, k1 = mask.span(q0, q1)
        if k0 == k1:
            continue
        visible = mask.tile(q0, q1, k0, k1)
        query, key, value = (
            call.query[:, :, q0:q1],
            call.key[:, :, k0:k1],
            call.value[:, :, k0:k1],
        )
        tile = None if bias is None else bias[..., q0:q1, k0:k1].to(query)
        if visible is not None:
            visible = visible.to(query.device)
            tile = query.new_zeros(()) if tile is None else tile
            tile = tile.masked_fill(~visible, -torch.inf)
        rows = slice(q0, q1)
        scale = call.score.scale
        output[:, :, rows], lse[:, :, rows] = _kernel(
            query, key, value, scale, False, tile
        )
        if visible is not None:
            blind = ~visible.any(-1).expand(lse[:, :, rows].shape)
            output[:, :, rows] = output[:, :, rows].masked_fill(blind[..., None], 0)
            lse[:, :, rows] = lse[:, :, rows].masked_fill(blind, -torch.inf)
    return output, lse


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One call of the device's kernel; all heads are of one width."""
    if query.device.type == "cuda":
        return _cuda(query, key, value, scale, causal, bias)
    # In half precision the lse of this kernel is good to 14 bits only.
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    if bias is not None:
        bias = bias.float().expand(*query.shape[:2], -1, -1)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )
    return output.to(dtype), lse


def _cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """CuDNN where torch says it runs, else flash; efficient for float32 or a bias.

    A single query goes to flash, which splits the keys.
    """
    shape = query.shape[:3]
    if bias is None:
        asked = SDPAParams(query, key, value, None, 0.0, causal, True)
        if shape[2] > 1 and can_use_cudnn_attention(asked):
            output, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
                query, key, value, None, True, 0.0, causal, scale=scale
            )
            return output, lse.reshape(shape)
        if can_use_flash_attention(asked):
            output, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, 0.0, causal, scale=scale
            )
            return output, lse
    group = shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    if bias is not None:
        n_key = bias.shape[-1]
        # The kernel reads rows of the bias in aligned steps.
        room = torch.nn.functional.pad(bias, (0, -n_key % 16))
        bias = room[..., :n_key].expand(*shape[:2], -1, -1)
    output, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )
    return output, lse[..., : shape[2]]


def _is_flash_band(call: AttentionCall) -> bool:
    """True for what flash calls a window: a band whose last query is the last key."""
    mask = call.mask
    ends = mask.query_offset + mask.query_length, mask.key_offset + mask.key_length
    is_known = (
        call.query.device.type == "cuda"
        and call.score.position_bias is None
        and mask.is_band
        and ends[0] == ends[1]
        and not mask.may_be_blind(0, mask.query_length)
    )
    if not is_known:
        return False
    asked = SDPAParams(call.query, call.key, call.value, None, 0.0, False, True)
    return can_use_flash_attention(asked)


def _flash_band(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """One call for a sliding window, or for queries after a cache: no mask is made."""
    mask = call.mask
    query, key, value = (t.transpose(1, 2) for t in (call.query, call.key, call.value))
    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        None,
        None,
        mask.query_length,
        mask.key_length,
        0.0,
        False,
        False,
        scale=call.score.scale,
        window_size_left=-1 if mask.behind is None else mask.behind,
        window_size_right=-1 if mask.ahead is None else mask.ahead,
    )
    return output.transpose(1, 2), lse
