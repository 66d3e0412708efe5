"""Attention output and row log-sum-exp from the fastest fused kernel there is.

A rule that the kernel cannot express goes through it in blocks of rows, each with a
mask tile of its own, so that memory stays linear in the number of tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor

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
    if bias is None and (mask.is_square_causal or mask.is_full):
        causal = mask.is_square_causal and mask.query_length > 1
        return _kernel(call.query, call.key, call.value, call.score.scale, causal, None)
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
            tile = torch.zeros((), device=query.device) if tile is None else tile
            tile = tile.to(query.dtype).masked_fill(~visible, -torch.inf)
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
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One call of the device's kernel; the value's width is padded to the query's."""
    width = value.shape[3]
    if width < query.shape[3]:
        value = torch.nn.functional.pad(value, (0, query.shape[3] - width))
    elif width > query.shape[3]:
        query, key = (
            torch.nn.functional.pad(t, (0, width - t.shape[3])) for t in (query, key)
        )
    if bias is not None:
        bias = bias.expand(query.shape[0], query.shape[1], -1, -1)
    if query.device.type == "cuda":
        output, lse = _cuda(query, key, value, scale, causal, bias)
    else:
        # In half precision the lse of this kernel is good to 14 bits only.
        dtype = query.dtype
        query, key, value = query.float(), key.float(), value.float()
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query,
            key,
            value,
            0.0,
            causal,
            attn_mask=None if bias is None else bias.float(),
            scale=scale,
        )
        output = output.to(dtype)
    return output[..., :width], lse.float()


def _cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    n_query = query.shape[2]
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and bias is None and n_query > 1 and query.shape[3] in (64, 96, 128):
        done = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, causal, False, scale=scale
        )
        return done[0], done[1].reshape(query.shape[:3])
    group = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    if bias is not None:
        pad = -bias.shape[-1] % 16  # the kernel reads rows of the bias in aligned steps
        room = torch.nn.functional.pad(bias.contiguous(), (0, pad))
        bias = room[..., : bias.shape[-1]]
    done = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )
    return done[0], done[1][..., :n_query]
