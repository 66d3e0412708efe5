"""Row statistics with queries at rest: log-sum-exp, and sums that need no atomics.

A program holds a block of queries and streams the keys that they see. It gives the
log-sum-exp where none is at hand, and row statistics in an order of addition that is
the same in every run.
"""

import triton
import triton.language as tl

from interp.kernels.triton_tiles import (
    HIDDEN,
    LOWEST,
    NEVER,
    biases,
    logits,
    mass_and_distance,
    place_maximum,
    products,
    visible_pairs,
)


@triton.jit
def rows_program(
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
    n_queries,
    n_keys,
    n_heads,
    row_stride,
    scale,
    cap,
    shift,
    clip,
    window,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    STAGES: tl.constexpr,
    TF32: tl.constexpr,
    EDGE: tl.constexpr,
    CAPPED: tl.constexpr,
    HOLES: tl.constexpr,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    LSE: tl.constexpr,
    ENTROPY: tl.constexpr,
    DISTANCE: tl.constexpr,
    CLIPPED: tl.constexpr,
    LOCAL: tl.constexpr,
    MAXIMUM: tl.constexpr,
):
    """One block of queries of one head against the keys that they see.

    LSE gives the base-2 log-sum-exp of each part of the keys at the place of the part,
    and nothing else is wanted then; otherwise `norm` is given, and there is one part.
    EDGE and the rest are as in `columns_program`.
    """
    # The last queries see most keys: they go first, so that no long program is last.
    query_block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2)
    q0 = query_block * M
    key_column = (head // group) * key_step
    query_column = head * query_step
    query = queries.load([q0, query_column])
    query_rest = query
    if REST > 0:
        query_rest = queries_rest.load([q0, query_column + D])
    at_key = tl.arange(0, N)
    q_index = q0 + tl.arange(0, M)
    real = q_index < n_queries
    head_row = head.to(tl.int64) * row_stride
    all_rows = tl.cast(n_heads, tl.int64) * row_stride
    own_low = tl.load(low + q_index, mask=real, other=0)
    own_high = tl.load(high + q_index, mask=real, other=0)
    own_norm = tl.zeros([M], tl.float32)
    if not LSE:
        own_norm = tl.load(norm + head_row + q_index, mask=real, other=NEVER)
    largest = tl.full([M], HIDDEN, tl.float32)
    mass = tl.zeros([M], tl.float32)
    entropy = tl.zeros([M], tl.float32)
    distance = tl.zeros([M], tl.float32)
    clipped = tl.zeros([M], tl.float32)
    local = tl.zeros([M], tl.float32)
    best = tl.full([M], LOWEST, tl.int64)
    begin = tl.load(ranges + query_block * 4)
    full_begin = tl.load(ranges + query_block * 4 + 1)
    full_end = tl.load(ranges + query_block * 4 + 2)
    end = tl.load(ranges + query_block * 4 + 3)
    before = full_begin - begin
    n_tiles = full_end - full_begin
    if EDGE:
        n_tiles = before + end - full_end

    share = tl.cdiv(n_tiles, tl.num_programs(2))
    last = tl.minimum((part + 1) * share, n_tiles)

    for step in tl.range(part * share, last, num_stages=STAGES):
        key_block = full_begin + step
        if EDGE:
            key_block = tl.where(step < before, begin + step, full_end + step - before)
        k0 = key_block * N
        key = keys.load([k0, key_column])
        key_rest = key
        if REST > 0:
            key_rest = keys_rest.load([k0, key_column + D])
        dots = products(query, query_rest, key, key_rest, REST, TF32)
        scores = logits(dots, scale, cap, CAPPED)
        if EDGE:
            k_index = k0 + at_key
            visible = visible_pairs(
                q_index, k_index, own_low, own_high, seen, mask + head * mask_head,
                mask_query, n_keys, HOLES, MASKED,
            )  # fmt: skip
            if BIASED:
                scores += biases(
                    q_index, k_index, bias + head.to(tl.int64) * bias_head,
                    bias_query, bias_key, visible,
                )  # fmt: skip
        if LSE:
            if EDGE:
                scores = tl.where(visible, scores, HIDDEN)
                grown = tl.maximum(largest, tl.max(scores, 1))
            elif CAPPED:
                grown = tl.maximum(largest, tl.max(scores, 1))
            else:
                # Scaled after the maximum: a product less for every pair.
                grown = tl.maximum(largest, tl.max(dots, 1) * scale)
            # A row that has seen nothing yet keeps -inf; 0 avoids inf - inf.
            level = tl.where(grown == HIDDEN, 0.0, grown)
            mass = mass * tl.exp2(largest - level)
            mass += tl.sum(tl.exp2(scores - level[:, None]), 1)
            largest = grown
        else:
            if EDGE:
                x = tl.where(visible, scores - own_norm[:, None], HIDDEN)
                p = tl.exp2(x)
                log_p = tl.where(visible, x, 0.0)
                back = (q_index + shift)[:, None] - k_index[None, :]
                if CLIPPED >= 0:
                    clipped += tl.sum(p * tl.minimum(back, clip).to(tl.float32), 1)
                if DISTANCE >= 0:
                    distance += tl.sum(p * back.to(tl.float32), 1)
                if LOCAL >= 0:
                    local += tl.sum(tl.where(back < window, p, 0.0), 1)
            else:
                x = scores - own_norm[:, None]
                p = tl.exp2(x)
                log_p = x
            if ENTROPY >= 0:
                entropy += tl.sum(p * log_p, 1)
            if (DISTANCE >= 0 or CLIPPED >= 0) and not EDGE:
                own, far = mass_and_distance(p, q_index + shift - k0, at_key, M, N)
                clipped += clip * own
                distance += far
            if MAXIMUM:
                best = tl.maximum(best, place_maximum(x, key_block))

    # Merged with what is there: the keys come in two launches.
    place = rows_out + head_row + q_index
    if LSE:
        place += part * all_rows
        total = tl.where(mass > 0, largest + tl.log2(mass), HIDDEN)
        held = tl.load(place, mask=real, other=0.0)
        top = tl.maximum(held, total)
        level = tl.where(top == HIDDEN, 0.0, top)
        both = level + tl.log2(tl.exp2(held - level) + tl.exp2(total - level))
        tl.store(place, tl.where(top == HIDDEN, HIDDEN, both), mask=real)
    if ENTROPY >= 0:
        _add(place + ENTROPY * all_rows, entropy, real)
    if DISTANCE >= 0:
        _add(place + DISTANCE * all_rows, distance, real)
    if CLIPPED >= 0:
        _add(place + CLIPPED * all_rows, clipped, real)
    if LOCAL >= 0:
        _add(place + LOCAL * all_rows, local, real)
    if MAXIMUM:
        own = best_out + head_row + q_index
        held = tl.load(own, mask=real, other=0)
        tl.store(own, tl.maximum(held, best), mask=real)


@triton.jit
def _add(place, value, real):
    tl.store(place, tl.load(place, mask=real, other=0.0) + value, mask=real)
