"""Attention under a change, with queries at rest and the softmax made on the way.

Only what is asked for costs anything: every part of the score rule and of the change
is a flag at compile time, and a block of keys that a tile bias drops is never loaded.
"""

import triton
import triton.language as tl

from interp.kernels.triton_tiles import (
    HIDDEN,
    LOG2E,
    biases,
    logits,
    products,
    visible_pairs,
)


@triton.jit
def attention_program(
    queries,
    queries_rest,
    keys,
    keys_rest,
    values,
    values_rest,
    query_step,
    key_step,
    value_step,
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
    sinks,
    head_scale,
    key_bias,
    key_bias_head,
    key_factor,
    key_factor_head,
    tile_bias,
    tile_head,
    tile_query,
    tile_key,
    kept,
    kept_before,
    kept_head,
    n_blocks,
    size,
    first_query,
    first_key,
    out,
    out_part,
    out_head,
    out_query,
    n_queries,
    n_keys,
    n_heads,
    row_stride,
    value_width,
    scale,
    cap,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    V: tl.constexpr,
    V_REST: tl.constexpr,
    STAGES: tl.constexpr,
    TF32: tl.constexpr,
    PLAIN: tl.constexpr,
    CAPPED: tl.constexpr,
    HOLES: tl.constexpr,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    KEY_BIAS: tl.constexpr,
    KEY_FACTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    """One block of queries of one head against one part of the keys that it sees.

    `norm [part, head, query]` gets the base-2 log-sum-exp, `out` the output, which
    leaves learned sinks to the caller unless SINKS. PLAIN: some tiles are wholly
    visible. BLOCKS: `size` is whole tiles, of which `kept [head, row, place]` are the
    blocks to look at, and `kept_before [head, row, block]` how many lie before each.
    BLOCK_PAIRS: it is not, and each pair looks up its block. `key_bias` is in base 2,
    and like `key_factor` it goes on to the end of the last tile.
    """
    # The last queries see most keys: they go first, so that no long program is last.
    query_block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2)
    n_parts = tl.num_programs(2)
    q0 = query_block * M
    key_column = (head // group) * key_step
    value_column = (head // group) * value_step
    query_column = head * query_step
    query = queries.load([q0, query_column])
    query_rest = query
    if REST > 0:
        query_rest = queries_rest.load([q0, query_column + D])
    long_head = head.to(tl.int64)
    bias_factor = 1.0
    if SCALED:
        bias_factor = tl.load(head_scale + head).to(tl.float32)
        # The sign goes to the query: the largest product is the largest logit.
        query = tl.where(bias_factor < 0, -query, query)
        if REST > 0:
            query_rest = tl.where(bias_factor < 0, -query_rest, query_rest)
        if CAPPED:
            cap *= tl.abs(bias_factor)
        else:
            scale *= tl.abs(bias_factor)
    at_key = tl.arange(0, N)
    q_index = q0 + tl.arange(0, M)
    real = q_index < n_queries
    own_low = tl.load(low + q_index, mask=real, other=0)
    own_high = tl.load(high + q_index, mask=real, other=0)
    largest = tl.full([M], HIDDEN, tl.float32)
    mass = tl.zeros([M], tl.float32)
    total = tl.zeros([M, V], tl.float32)
    total_rest = tl.zeros([M, V_REST if V_REST > 0 else 16], tl.float32)
    begin = tl.load(ranges + query_block * 4)
    full_begin = tl.load(ranges + query_block * 4 + 1)
    full_end = tl.load(ranges + query_block * 4 + 2)
    end = tl.load(ranges + query_block * 4 + 3)
    tile_row = tile_bias + long_head * tile_head
    kept_row = kept
    per_block = 1
    if BLOCKS:
        row = (first_query + q0) // size
        tile_row += row.to(tl.int64) * tile_query
        kept_row += long_head * kept_head * n_blocks + row.to(tl.int64) * n_blocks
        before_row = kept_before + long_head * kept_head * (n_blocks + 1)
        before_row += row.to(tl.int64) * (n_blocks + 1)
        per_block = size // N
        # From here on, tiles are counted among those that are kept.
        begin = _kept_tiles(before_row, begin, per_block)
        full_begin = _kept_tiles(before_row, full_begin, per_block)
        full_end = _kept_tiles(before_row, full_end, per_block)
        end = _kept_tiles(before_row, end, per_block)
    before = full_begin - begin

    for edge in tl.static_range(0 if PLAIN else 1, 2):
        n_tiles = full_end - full_begin
        if edge == 1:
            n_tiles = before + end - full_end
        share = tl.cdiv(n_tiles, n_parts)
        last = tl.minimum((part + 1) * share, n_tiles)
        for step in tl.range(part * share, last, num_stages=STAGES):
            tile = full_begin + step
            if edge == 1:
                tile = tl.where(step < before, begin + step, full_end + step - before)
            level_bias = 0.0
            if BLOCKS:
                block = tl.load(kept_row + tile // per_block)
                tile = block * per_block + tile % per_block
                level_bias = tl.load(tile_row + block * tile_key).to(tl.float32) * LOG2E
            k0 = tile * N
            k_index = k0 + at_key
            key = keys.load([k0, key_column])
            key_rest = key
            if REST > 0:
                key_rest = keys_rest.load([k0, key_column + D])
            dots = products(query, query_rest, key, key_rest, REST, TF32)
            scores = logits(dots, scale, cap, CAPPED)
            if KEY_BIAS:
                place = key_bias + long_head * key_bias_head + k_index
                scores += tl.load(place)[None, :]
            if BLOCK_PAIRS:
                rows = (q_index + first_query) // size
                columns = (k_index + first_key) // size
                shown = real[:, None] & (k_index < n_keys)[None, :]
                scores += biases(rows, columns, tile_row, tile_query, tile_key, shown)
            if edge == 1:
                visible = visible_pairs(
                    q_index, k_index, own_low, own_high, seen, mask + head * mask_head,
                    mask_query, n_keys, HOLES, MASKED,
                )  # fmt: skip
                if BIASED:
                    own_biases = biases(
                        q_index, k_index, bias + long_head * bias_head, bias_query,
                        bias_key, visible,
                    )  # fmt: skip
                    scores += own_biases * bias_factor
                scores = tl.where(visible, scores, HIDDEN)
            if edge == 1 or CAPPED or KEY_BIAS or BLOCK_PAIRS:
                highest = tl.max(scores, 1)
            else:
                # Scaled after the maximum: a product less for every pair.
                highest = tl.max(dots, 1) * scale
            grown = tl.maximum(largest, highest + level_bias)
            # A row that has seen nothing yet keeps -inf; 0 avoids inf - inf.
            level = tl.where(grown == HIDDEN, 0.0, grown)
            shrunk = tl.exp2(largest - level)
            p = tl.exp2(scores - (level - level_bias)[:, None])
            mass = mass * shrunk + tl.sum(p, 1)
            largest = grown
            if KEY_FACTOR:
                place = key_factor + long_head * key_factor_head + k_index
                p *= tl.load(place)[None, :]
            value = values.load([k0, value_column])
            p = p.to(value.dtype)
            total = tl.dot(p, value, total * shrunk[:, None], input_precision=TF32)
            if V_REST > 0:
                value = values_rest.load([k0, value_column + V])
                total_rest = total_rest * shrunk[:, None]
                total_rest = tl.dot(p, value, total_rest, input_precision=TF32)

    # A wholly visible tile may hold queries that are padding, and see nothing.
    largest = tl.where(own_low < own_high, largest, HIDDEN)
    blind = largest == HIDDEN
    mass = tl.where(blind, 1.0, mass)
    row = (part * n_heads + head).to(tl.int64) * row_stride + q_index
    tl.store(norm + row, largest + tl.log2(mass), mask=real)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        mass += tl.exp2(sink - tl.where(blind, 0.0, largest))
    share = tl.where(blind, 0.0, 1 / mass)[:, None]
    start = out + part.to(tl.int64) * out_part + long_head * out_head
    places = start + q_index.to(tl.int64)[:, None] * out_query
    column = tl.arange(0, V)
    shown = real[:, None] & (column < value_width)[None, :]
    result = (total * share).to(out.dtype.element_ty)
    tl.store(places + column[None, :], result, mask=shown)
    if V_REST > 0:
        column = V + tl.arange(0, V_REST)
        shown = real[:, None] & (column < value_width)[None, :]
        result = (total_rest * share).to(out.dtype.element_ty)
        tl.store(places + column[None, :], result, mask=shown)


@triton.jit
def _kept_tiles(before, tile, per_block):
    """How many tiles before this one are of a kept block."""
    block = tile // per_block
    within = tile % per_block
    count = tl.load(before + block)
    own = tl.load(before + block + (within > 0).to(tl.int32)) - count
    return count * per_block + own * within
