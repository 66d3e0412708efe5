"""Column statistics, and row statistics beside them, in one pass with keys at rest.

A program holds a block of keys and streams the queries that see it. What belongs to
a key stays in registers from the first tile to the last and is written once. What
belongs to a query is summed over the tile, which is cheap, a row of a tile lies in four
lanes of a warp, and added to the total in memory. The other way round, with queries at
rest, every tile's column sums cross all lanes and warps: measured 1.4 times slower.
"""

import triton
import triton.language as tl

from interp.kernels.triton_tiles import (
    HIDDEN,
    NEVER,
    biases,
    logits,
    mass_and_distance,
    place_maximum,
    products,
    visible_pairs,
)


@triton.jit
def columns_program(
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
    ranges,
    rows_out,
    best_out,
    columns_out,
    blocks_out,
    blocks_largest,
    n_queries,
    n_keys,
    n_heads,
    row_stride,
    scale,
    cap,
    shift,
    reach,
    clip,
    window,
    nearest,
    farthest,
    size,
    query_base,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    TF32: tl.constexpr,
    EDGE: tl.constexpr,
    HEADS_FIRST: tl.constexpr,
    CAPPED: tl.constexpr,
    HOLES: tl.constexpr,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    ENTROPY: tl.constexpr,
    DISTANCE: tl.constexpr,
    CLIPPED: tl.constexpr,
    LOCAL: tl.constexpr,
    MAXIMUM: tl.constexpr,
    RECEIVED: tl.constexpr,
    RECEIVED_MAX: tl.constexpr,
    FUTURE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One block of keys of one head against the queries that see it.

    EDGE takes the tiles that are looked at pair by pair, otherwise the wholly visible
    ones are taken: one program with both loops would need more registers than it has.
    HEADS_FIRST runs the heads of a group side by side, so that they share its keys;
    otherwise the blocks of a head run side by side, and share its queries.
    ENTROPY ... FUTURE are the places of a statistic in `rows_out [place, head, query]`
    or `columns_out [place, head, key]`, -1 where it is not wanted; BLOCKS is the side
    of the parts in which block maps are summed, 0 for none.
    """
    key_block = tl.program_id(1 if HEADS_FIRST else 0)
    head = tl.program_id(0 if HEADS_FIRST else 1)
    k0 = key_block * N
    key_column = (head // group) * key_step
    query_column = head * query_step
    key = keys.load([k0, key_column])
    key_rest = key
    if REST > 0:
        key_rest = keys_rest.load([k0, key_column + D])
    at_key = tl.arange(0, N)
    at_query = tl.arange(0, M)
    k_index = k0 + at_key
    # Of a wgmma tile, warp w holds rows 16 w .. 16 w + 15 of each 64, a lane two of
    # them: with the axes so, sums over the first and third stay within a thread.
    DOWN: tl.constexpr = WARPS if M >= 16 * WARPS else M // 16
    AGAIN: tl.constexpr = M // (16 * DOWN)
    received = tl.zeros([DOWN, 8, N], tl.float32)
    received_max = tl.zeros([DOWN, 8, N], tl.float32)
    future = tl.zeros([DOWN, 8, N], tl.float32)
    head_row = head.to(tl.int64) * row_stride
    all_rows = tl.cast(n_heads, tl.int64) * row_stride
    begin = tl.load(ranges + key_block * 4)
    full_begin = tl.load(ranges + key_block * 4 + 1)
    full_end = tl.load(ranges + key_block * 4 + 2)
    end = tl.load(ranges + key_block * 4 + 3)
    before = full_begin - begin
    n_tiles = full_end - full_begin
    if EDGE:
        n_tiles = before + end - full_end

    for step in tl.range(0, n_tiles, num_stages=STAGES):
        tile = full_begin + step
        if EDGE:
            tile = tl.where(step < before, begin + step, full_end + step - before)
        q0 = tile * M
        q_index = q0 + at_query
        real = q_index < n_queries
        query = queries.load([q0, query_column])
        query_rest = query
        if REST > 0:
            query_rest = queries_rest.load([q0, query_column + D])
        dots = products(query, query_rest, key, key_rest, REST, TF32)
        own_norm = tl.load(norm + head_row + q_index, mask=real, other=NEVER)
        scores = logits(dots, scale, cap, CAPPED)
        place = rows_out + head_row + q_index
        if EDGE:
            visible = visible_pairs(
                q_index, k_index,
                tl.load(low + q_index, mask=real, other=0),
                tl.load(high + q_index, mask=real, other=0),
                seen, mask + head * mask_head, mask_query, n_keys, HOLES, MASKED,
            )  # fmt: skip
            if BIASED:
                scores += biases(
                    q_index, k_index, bias + head.to(tl.int64) * bias_head,
                    bias_query, bias_key, visible,
                )  # fmt: skip
            x = tl.where(visible, scores - own_norm[:, None], HIDDEN)
            p = tl.exp2(x)
            log_p = tl.where(visible, x, 0.0)
            back = (q_index + shift)[:, None] - k_index[None, :]
            if CLIPPED >= 0:
                total = tl.sum(p * tl.minimum(back, clip).to(tl.float32), 1)
                own = place + CLIPPED * all_rows
                tl.atomic_add(own, total, mask=real, sem="relaxed")
            if DISTANCE >= 0:
                total = tl.sum(p * back.to(tl.float32), 1)
                own = place + DISTANCE * all_rows
                tl.atomic_add(own, total, mask=real, sem="relaxed")
            if q0 + shift - (k0 + N - 1) < reach:
                if LOCAL >= 0:
                    total = tl.sum(tl.where(back < window, p, 0.0), 1)
                    own = place + LOCAL * all_rows
                    tl.atomic_add(own, total, mask=real, sem="relaxed")
                if FUTURE >= 0:
                    ahead = tl.where((back >= nearest) & (back <= farthest), p, 0.0)
                    parts = tl.reshape(ahead, [AGAIN, DOWN, 2, 8, N])
                    future += tl.sum(tl.sum(parts, 2), 0)
        else:
            x = scores - own_norm[:, None]
            p = tl.exp2(x)
            log_p = x
        if ENTROPY >= 0:
            total = tl.sum(p * log_p, 1)
            tl.atomic_add(place + ENTROPY * all_rows, total, mask=real, sem="relaxed")
        if (DISTANCE >= 0 or CLIPPED >= 0) and not EDGE:
            mass, far = mass_and_distance(p, q_index + shift - k0, at_key, M, N)
            if CLIPPED >= 0:
                own = place + CLIPPED * all_rows
                tl.atomic_add(own, clip * mass, mask=real, sem="relaxed")
            if DISTANCE >= 0:
                own = place + DISTANCE * all_rows
                tl.atomic_add(own, far, mask=real, sem="relaxed")
        if MAXIMUM:
            best = place_maximum(x, key_block)
            tl.atomic_max(best_out + head_row + q_index, best, mask=real, sem="relaxed")
        if RECEIVED >= 0 or RECEIVED_MAX >= 0:
            parts = tl.reshape(p, [AGAIN, DOWN, 2, 8, N])
            if RECEIVED >= 0:
                received += tl.sum(tl.sum(parts, 2), 0)
            if RECEIVED_MAX >= 0:
                received_max = tl.maximum(received_max, tl.max(tl.max(parts, 2), 0))
        if BLOCKS > 0:
            _add_blocks(
                blocks_out, blocks_largest, p, head, query_base + q0, k0, size,
                row_stride, n_keys, M, N, BLOCKS,
            )  # fmt: skip

    column = columns_out + head.to(tl.int64) * n_keys + k_index
    all_columns = tl.cast(n_heads, tl.int64) * n_keys
    inside = k_index < n_keys
    # Added, not stored: the queries come in several launches.
    if RECEIVED >= 0:
        own = column + RECEIVED * all_columns
        held = tl.load(own, mask=inside, other=0.0)
        tl.store(own, held + tl.sum(tl.sum(received, 0), 0), mask=inside)
    if RECEIVED_MAX >= 0:
        own = column + RECEIVED_MAX * all_columns
        held = tl.load(own, mask=inside, other=0.0)
        largest = tl.max(tl.max(received_max, 0), 0)
        tl.store(own, tl.maximum(held, largest), mask=inside)
    if FUTURE >= 0:
        own = column + FUTURE * all_columns
        held = tl.load(own, mask=inside, other=0.0)
        tl.store(own, held + tl.sum(tl.sum(future, 0), 0), mask=inside)


@triton.jit
def _add_blocks(
    sums,
    largest,
    p,
    head,
    q0,
    k0,
    size,
    n_queries,
    n_keys,
    M: tl.constexpr,
    N: tl.constexpr,
    PART: tl.constexpr,
):
    """Adds a tile to block maps, in parts that lie in one block each."""
    parts = tl.reshape(p, [M // PART, PART, N // PART, PART])
    part_sums = tl.sum(tl.sum(parts, 3), 1)
    part_largest = tl.max(tl.max(parts, 3), 1)
    row = q0 + tl.arange(0, M // PART) * PART
    column = k0 + tl.arange(0, N // PART) * PART
    inside = (row < n_queries)[:, None] & (column < n_keys)[None, :]
    across = tl.cdiv(n_keys, size)
    first = head.to(tl.int64) * tl.cdiv(n_queries, size) * across
    place = first + (row // size)[:, None] * across + (column // size)[None, :]
    tl.atomic_add(sums + place, part_sums, mask=inside, sem="relaxed")
    tl.atomic_max(largest + place, part_largest, mask=inside, sem="relaxed")
