"""The key of each row's maximum on the GPU, once the block that holds it is known.

Rows whose maximum lies in the same block of keys are taken together, so that their
logits are one product again and each block is read a few times, not once a row.
"""

import triton
import triton.language as tl

from interp.kernels.triton_tiles import HIDDEN, biases, logits, visible_pairs


@triton.jit
def maxima_program(
    queries,
    query_head,
    query_token,
    keys,
    key_head,
    key_token,
    group,
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
    best,
    order,
    first_row,
    first_tile,
    block_of_tile,
    n_tiles,
    n_blocks,
    first_head,
    n_queries,
    n_keys,
    row_stride,
    scale,
    cap,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    TF32: tl.constexpr,
    CAPPED: tl.constexpr,
    HOLES: tl.constexpr,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Some queries of one head, all of whose maxima lie in one block of keys.

    `best [head, query]` holds what `place_maximum` found, and gets the first key that
    has the largest logit in the place of the block. `order [own_head, query]` has the
    queries by block, `first_row [own_head, block]` where those of a block begin,
    `first_tile [own_head, block]`, `block_of_tile [own_head, tile]` how they are cut.
    """
    tile = tl.program_id(0)
    own_head = tl.program_id(1)
    block = tl.load(block_of_tile + own_head * n_tiles + tile)
    if block < n_blocks:
        head = first_head + own_head
        entry = own_head * (n_blocks + 1) + block
        begin = tl.load(first_row + entry)
        end = tl.load(first_row + entry + 1)
        at = begin + (tile - tl.load(first_tile + entry)) * M + tl.arange(0, M)
        inside = at < end
        ordered = order + own_head.to(tl.int64) * n_queries + at
        q_index = tl.load(ordered, mask=inside, other=0)
        k_index = block * N + tl.arange(0, N)
        query = queries + head.to(tl.int64) * query_head
        key = keys + (head // group).to(tl.int64) * key_head
        PART: tl.constexpr = PADDED if PADDED < 64 else 64
        dots = tl.zeros([M, N], tl.float32)
        for start in tl.static_range(0, PADDED, PART):
            column = start + tl.arange(0, PART)
            shown = (column < WIDTH)[None, :]
            rows = q_index[:, None] * query_token + column[None, :]
            own = tl.load(query + rows, mask=inside[:, None] & shown, other=0.0)
            rows = k_index.to(tl.int64)[:, None] * key_token + column[None, :]
            real = (k_index < n_keys)[:, None]
            block_keys = tl.load(key + rows, mask=real & shown, other=0.0)
            dots = tl.dot(own, block_keys.T, dots, input_precision=TF32)
        scores = logits(dots, scale, cap, CAPPED)
        own_low = tl.load(low + q_index, mask=inside, other=0)
        own_high = tl.load(high + q_index, mask=inside, other=0)
        visible = visible_pairs(
            q_index, k_index, own_low, own_high, seen, mask + head * mask_head,
            mask_query, n_keys, HOLES, MASKED,
        )  # fmt: skip
        if BIASED:
            scores += biases(
                q_index, k_index, bias + head.to(tl.int64) * bias_head,
                bias_query, bias_key, visible,
            )  # fmt: skip
        scores = tl.where(visible, scores, HIDDEN)
        largest = tl.max(scores, 1)
        holds = visible & (scores == largest[:, None])
        found = tl.min(tl.where(holds, k_index[None, :], n_keys), 1)
        # A row of minus infinities still names a key that it may see.
        found = tl.where(found < n_keys, found, own_low)
        place = best + head.to(tl.int64) * row_stride + q_index
        packed = tl.load(place, mask=inside, other=0)
        own_place = (0x7FFFFFFF - found).to(tl.int64)
        tl.store(place, (packed >> 32 << 32) | own_place, mask=inside)
