"""What the GPU programs share: how a tile of q.k becomes logits and weights.

Logits are in base 2 and less the row's norm, as in `tiled`: `exp2` is one instruction.
"""

import triton
import triton.language as tl

from interp.kernels import tiled

LOG2E = tl.constexpr(tiled.LOG2E)

HIDDEN = tl.constexpr(float("-inf"))
"""Logit of a pair that does not exist."""

NEVER = tl.constexpr(1e30)
"""Norm of a row that sees nothing: its weights come out as 0."""

LOWEST = tl.constexpr(-(2**63))
"""What `place_maximum` never gives: before any maximum was found."""


@triton.jit
def products(query, query_rest, key, key_rest, REST: tl.constexpr, TF32: tl.constexpr):
    """q.k `[query, key]`; the head's width is one or two powers of two."""
    dots = tl.dot(query, key.T, input_precision=TF32)
    if REST > 0:
        dots = tl.dot(query_rest, key_rest.T, dots, input_precision=TF32)
    return dots


@triton.jit
def logits(dots, scale, cap, CAPPED: tl.constexpr):
    """Base-2 logits of products.

    Args:
        dots: q.k.
        scale: Factor that gives base-2 logits, or what the cap is applied to.
        cap: The softcap times log2(e).
        CAPPED: Whether there is a softcap.
    """
    scores = dots * scale
    if CAPPED:
        scores = cap * tanh(scores)
    return scores


@triton.jit
def tanh(x):
    """Hyperbolic tangent, good to a few roundings for small arguments too."""
    square = x * x
    series = -1382 / 155925
    series = series * square + 62 / 2835
    series = series * square - 17 / 315
    series = series * square + 2 / 15
    series = series * square - 1 / 3
    near = x + x * square * series
    growth = tl.exp2(tl.abs(x) * (-2 * LOG2E))
    middle = tl.div_rn(1 - growth, 1 + growth)
    end = 1 - tl.div_rn(2 * growth, 1 + growth)
    far = tl.where(tl.abs(x) < 1, middle, end)
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def visible_pairs(
    rows,
    keys,
    low,
    high,
    seen,
    mask,
    mask_stride,
    n_keys,
    HOLES: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Which pairs of a tile exist `[query, key]`.

    Args:
        rows: Indices of the queries.
        keys: Indices of the keys.
        low: First key that each query sees.
        high: The key after the last one.
        seen: Pointer to `[key]`, 0 for keys that nothing sees; read if HOLES.
        mask: Pointer to `[query, key]`, 0 for hidden pairs; read if MASKED.
        mask_stride: From query to query.
        n_keys: Number of keys.
        HOLES: Whether some keys are not there.
        MASKED: Whether pairs have a mask of their own.
    """
    visible = (keys[None, :] >= low[:, None]) & (keys[None, :] < high[:, None])
    if HOLES:
        real = tl.load(seen + keys, mask=keys < n_keys, other=0)
        visible = visible & (real[None, :] != 0)
    if MASKED:
        places = rows.to(tl.int64)[:, None] * mask_stride + keys[None, :]
        visible = visible & (tl.load(mask + places, mask=visible, other=0) != 0)
    return visible


@triton.jit
def biases(rows, keys, bias, query_stride, key_stride, visible):
    """A position bias in base 2, `[query, key]`."""
    places = rows.to(tl.int64)[:, None] * query_stride + keys[None, :] * key_stride
    return tl.load(bias + places, mask=visible, other=0).to(tl.float32) * LOG2E


@triton.jit
def mass_and_distance(p, ahead, at_key, M: tl.constexpr, N: tl.constexpr):
    """Sums of p and of p (pos_query - pos_key), for tiles that are not too near.

    The distance is `ahead`, to the tile's first key, less `at_key`. Of that, bits 1 and
    2 say the lane of a warp; the others are known when the program is compiled.
    """
    lanes = tl.sum(tl.sum(tl.reshape(p, [M, N // 8, 4, 2]), 3), 1)
    mass = tl.sum(lanes, 1)
    in_lane = tl.sum(p * (at_key & ~6).to(tl.float32)[None, :], 1)
    of_lane = tl.sum(lanes * (tl.arange(0, 4) * 2).to(tl.float32)[None, :], 1)
    return mass, ahead.to(tl.float32) * mass - (in_lane + of_lane)


@triton.jit
def place_maximum(x, block):
    """The largest of each row and the block of keys that holds it.

    One integer orders by value, then by the lower block, for `atomic_max`.
    """
    return placed(tl.max(x, 1), block)


@triton.jit
def placed(x, place):
    """A number and its place in one integer, in the order of the numbers."""
    bits = x.to(tl.int32, bitcast=True)
    ordered = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)
