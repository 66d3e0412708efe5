"""The largest keys of few rows on the GPU: first by block, then in the best blocks.

The k largest of a row lie in the k blocks of the largest maxima, so that only those are
looked at key by key. Both looks make the same products, bit by bit.
"""

import triton
import triton.language as tl

from interp.kernels.triton_tiles import (
    HIDDEN,
    LOWEST,
    NEVER,
    biases,
    logits,
    place_maximum,
    placed,
    products,
    visible_pairs,
)


@triton.jit
def top_keys_program(
    queries,
    queries_rest,
    keys,
    keys_rest,
    query_step,
    key_step,
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
    chosen,
    out,
    n_queries,
    n_keys,
    n_heads,
    row_stride,
    scale,
    cap,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    TF32: tl.constexpr,
    CAPPED: tl.constexpr,
    HOLES: tl.constexpr,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """All queries of one head against one block of keys.

    `out [head, query, block]` gets each row's maximum and its block. With CHOSEN, the
    last axis of the grid is a row, `chosen [head, query, rank]` are its blocks, and
    `out [head, query, rank, key]` gets the logit and the key of every pair.
    """
    head = tl.program_id(0)
    rank = tl.program_id(1)
    row = tl.program_id(2)
    entry = (head.to(tl.int64) * n_queries + row) * tl.num_programs(1) + rank
    block = rank
    if CHOSEN:
        block = tl.load(chosen + entry).to(tl.int32)
    k0 = block * N
    key_column = (head // group) * key_step
    query_column = head * query_step
    query = queries.load([0, query_column])
    key = keys.load([k0, key_column])
    query_rest = query
    key_rest = key
    if REST > 0:
        query_rest = queries_rest.load([0, query_column + D])
        key_rest = keys_rest.load([k0, key_column + D])
    dots = products(query, query_rest, key, key_rest, REST, TF32)
    scores = logits(dots, scale, cap, CAPPED)
    q_index = tl.arange(0, M)
    k_index = k0 + tl.arange(0, N)
    real = q_index < n_queries
    visible = visible_pairs(
        q_index, k_index,
        tl.load(low + q_index, mask=real, other=0),
        tl.load(high + q_index, mask=real, other=0),
        seen, mask + head * mask_head, mask_query, n_keys, HOLES, MASKED,
    )  # fmt: skip
    if BIASED:
        scores += biases(
            q_index, k_index, bias + head.to(tl.int64) * bias_head, bias_query,
            bias_key, visible,
        )  # fmt: skip
    head_row = head.to(tl.int64) * row_stride
    own_norm = tl.load(norm + head_row + q_index, mask=real, other=NEVER)
    x = tl.where(visible, scores - own_norm[:, None], HIDDEN)
    if CHOSEN:
        # A pair that does not exist is none whose logit is -inf.
        pairs = tl.where(visible, placed(x, k_index[None, :]), LOWEST)
        own = tl.where((q_index == row)[:, None], pairs, 0)
        tl.store(out + entry * N + tl.arange(0, N), tl.sum(own, 0))
    else:
        blocks = tl.num_programs(1)
        place = out + (head.to(tl.int64) * n_queries + q_index) * blocks + block
        found = tl.max(visible.to(tl.int32), 1) > 0
        best = tl.where(found, place_maximum(x, block), LOWEST)
        tl.store(place, best, mask=real)
