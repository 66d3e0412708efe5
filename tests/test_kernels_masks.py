"""Mask rules: what each says of a tile is what the words say of the map."""

from unittest import mock

import pytest
import torch
from attention_cases import Case, cases, make
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.kernels import masks
from interp.kernels.masks import MaskRule


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Case, tuple[int, int, int, int]]:
    """A case and a tile of it."""
    case = make(**{**draw(cases()), "dtype": torch.float32})
    bounds = []
    for length in (case.call.mask.query_length, case.call.mask.key_length):
        low = draw(st.integers(0, length - 1))
        bounds += [low, draw(st.integers(low + 1, length))]
    q0, q1, k0, k1 = bounds
    return case, (q0, q1, k0, k1)


@settings(max_examples=80)
@given(both=boxes())
def test_a_tile_is_that_part_of_the_map(both):
    case, (q0, q1, k0, k1) = both
    rule, wanted = case.call.mask, case.visible[:, :, q0:q1, k0:k1]
    tile = rule.tile(q0, q1, k0, k1)
    seen = torch.ones_like(wanted) if tile is None else tile.expand_as(wanted)
    assert torch.equal(seen, wanted)
    certain = wanted.clone()
    for a, b in rule.uncertain(q0, q1, k0, k1):
        certain[..., a - k0 : b - k0] = True
    assert certain.all()
    low, high = rule.span(q0, q1)
    assert not case.visible[:, :, q0:q1, :low].any()
    assert not case.visible[:, :, q0:q1, high:].any()
    if not rule.may_be_blind(q0, q1):
        assert case.visible[:, :, q0:q1].any(-1).all()


@settings(max_examples=40)
@given(both=boxes(), size=st.sampled_from((1, 20, 64)), near=st.integers(0, 9))
def test_counts_are_those_of_the_map(both, size, near):
    case, _ = both
    rule, visible = case.call.mask, case.visible
    n_query, n_key = visible.shape[2:]
    distance = rule.distance(0, n_query, 0, n_key)
    with mock.patch.object(masks, "COUNTED", 50 * n_key):
        counts = rule.queries_per_key()
    assert torch.equal(counts.expand(*visible.shape[:2], -1), visible.sum(2))
    inside = visible & (distance >= near) & (distance <= near + 5)
    counts = rule.queries_per_key(near, near + 5)
    assert torch.equal(counts.expand(*visible.shape[:2], -1), inside.sum(2))
    pairs = rule.pairs_per_block(size)
    pad = (0, -n_key % size, 0, -n_query % size)
    padded = torch.nn.functional.pad(visible.long(), pad)
    blocks = padded.unflatten(3, (-1, size)).unflatten(2, (-1, size)).sum((3, 5))
    assert torch.equal(pairs.expand_as(blocks), blocks)


@settings(max_examples=40)
@given(both=boxes(), seed=st.integers(0, 99))
def test_named_pairs_are_those_of_the_map(both, seed):
    case, _ = both
    visible = case.visible
    shape = (visible.shape[0], visible.shape[2])
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, visible.shape[3], shape, generator=draw)
    at = targets.clamp(min=0)[:, None, :, None].expand(-1, visible.shape[1], -1, 1)
    wanted = visible.gather(3, at)[..., 0] & (targets >= 0)[:, None]
    assert torch.equal(case.call.mask.pairs(targets).expand_as(wanted), wanted)


@settings(max_examples=40)
@given(both=boxes())
def test_a_narrowed_rule_is_that_part_of_the_map(both):
    case, (q0, q1, k0, k1) = both
    wanted = case.visible[-1:, :, q0:q1, k0:k1]
    rule = case.call.mask.narrow(case.call.n_batch - 1, slice(q0, q1), slice(k0, k1))
    tile = rule.tile(0, q1 - q0, 0, k1 - k0)
    seen = torch.ones_like(wanted) if tile is None else tile.expand_as(wanted)
    assert torch.equal(seen, wanted)
    rows = case.call.mask.rows(q0, q1).tile(0, q1 - q0, k0, k1)
    wanted = case.visible[:, :, q0:q1, k0:k1]
    seen = torch.ones_like(wanted) if rows is None else rows.expand_as(wanted)
    assert torch.equal(seen, wanted)


def test_a_causal_window_counts_the_query_itself():
    tile = MaskRule.causal(4, window=2).tile(0, 4, 0, 4)
    assert tile is not None
    assert tile[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    ("rule", "square", "full"),
    [
        (MaskRule.causal(9), True, False),
        (MaskRule.causal(9, window=9), True, False),
        (MaskRule.causal(9, window=8), False, False),
        (MaskRule(3, 9, query_offset=6), False, False),
        (MaskRule.full(3, 9), False, True),
        (MaskRule(1, 9, query_offset=8), False, True),
        (MaskRule(9, 9, key_padding=torch.ones(1, 9).bool()), False, False),
    ],
)
def test_a_rule_says_what_a_kernel_can_specialize_on(rule, square, full):
    assert rule.is_square_causal == square
    assert rule.is_full == full
