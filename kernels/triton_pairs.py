"""Single pairs on the GPU: weights at keys that are known by name."""

import triton
import triton.language as tl

from interp.kernels.triton_tiles import (
    HIDDEN,
    LOG2E,
    NEVER,
    biases,
    logits,
    visible_pairs,
)


@triton.jit
def _pair_logits(
    query,
    key,
    key_token,
    at,
    target,
    q_index,
    inside,
    low,
    high,
    seen,
    mask,
    mask_query,
    bias,
    bias_query,
    bias_key,
    scale,
    cap,
    CAPPED: tl.constexpr,
    HOLES: tl.constexpr,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Base-2 logit of each query and its one target, -inf where there is no pair."""
    visible = inside & (target >= low) & (target < high)
    place = tl.where(visible, target, 0).to(tl.int64)
    if HOLES:
        visible = visible & (tl.load(seen + place, mask=visible, other=0) != 0)
    row = q_index.to(tl.int64)
    if MASKED:
        bit = tl.load(mask + row * mask_query + place, mask=visible, other=0)
        visible = visible & (bit != 0)
    places = (place * key_token)[:, None] + at[0][None, :]
    rows = tl.load(key + places, mask=visible[:, None] & at[1][None, :], other=0.0)
    scores = logits(tl.sum(query * rows.to(tl.float32), 1), scale, cap, CAPPED)
    if BIASED:
        where = row * bias_query + place * bias_key
        extra = tl.load(bias + where, mask=visible, other=0)
        scores += extra.to(tl.float32) * LOG2E
    return tl.where(visible, scores, HIDDEN)


@triton.jit
def pairs_program(
    queries,
    query_head,
    query_token,
    keys,
    key_head,
    key_token,
    group,
    norm,
    low,
    high,
    seen,
    mask,
    mask_head,
    mask_query,
    bias,
    bias_head,
    bias_query,
    bias_key,
    targets,
    target_query,
    n_targets,
    out,
    n_queries,
    n_keys,
    row_stride,
    scale,
    cap,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    SHARED: tl.constexpr,
    TF32: tl.constexpr,
    CAPPED: tl.constexpr,
    HOLES: tl.constexpr,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Some queries of one head.

    `out [head, query]` gets the sum of the weights at `targets [query, target]`, -1 for
    none. With SHARED, room for them, `targets [target]` are those of every query: the
    products are then made as for tiles, and agree with the norm to the bit.
    """
    head = tl.program_id(1)
    q_index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = q_index < n_queries
    column = tl.arange(0, PADDED)
    at = (column, column < WIDTH)
    base = queries + head.to(tl.int64) * query_head
    places = (q_index.to(tl.int64) * query_token)[:, None] + column[None, :]
    shown = inside[:, None] & at[1][None, :]
    query = tl.load(base + places, mask=shown, other=0.0)
    key = keys + (head // group).to(tl.int64) * key_head
    own_low = tl.load(low + q_index, mask=inside, other=0)
    own_high = tl.load(high + q_index, mask=inside, other=0)
    own_mask = mask + head * mask_head
    own_bias = bias + head.to(tl.int64) * bias_head
    head_row = head.to(tl.int64) * row_stride
    own_norm = tl.load(norm + head_row + q_index, mask=inside, other=NEVER)
    total = tl.zeros([ROWS], tl.float32)
    if SHARED > 0:
        at_target = tl.arange(0, SHARED)
        target = tl.load(targets + at_target, mask=at_target < n_targets, other=-1)
        k_index = tl.where(target >= 0, target, n_keys)
        places = (k_index.to(tl.int64) * key_token)[:, None] + column[None, :]
        real = (k_index < n_keys)[:, None] & at[1][None, :]
        rows = tl.load(key + places, mask=real, other=0.0)
        dots = tl.dot(query, rows.T, input_precision=TF32)
        scores = logits(dots, scale, cap, CAPPED)
        visible = visible_pairs(
            q_index, k_index, own_low, own_high, seen, own_mask, mask_query, n_keys,
            HOLES, MASKED,
        )  # fmt: skip
        if BIASED:
            scores += biases(
                q_index, k_index, own_bias, bias_query, bias_key, visible
            )  # fmt: skip
        x = tl.where(visible, scores - own_norm[:, None], HIDDEN)
        total = tl.sum(tl.exp2(x), 1)
    else:
        query = query.to(tl.float32)
        for t in range(0, n_targets):
            own = targets + q_index.to(tl.int64) * target_query + t
            target = tl.load(own, mask=inside, other=-1)
            score = _pair_logits(
                query, key, key_token, at, target, q_index, inside & (target >= 0),
                own_low, own_high, seen, own_mask, mask_query, own_bias, bias_query,
                bias_key, scale, cap, CAPPED, HOLES, MASKED, BIASED,
            )  # fmt: skip
            total += tl.exp2(score - own_norm)
    tl.store(out + head_row + q_index, total, mask=inside)
