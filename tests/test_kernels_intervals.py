"""Ranges of keys and of tiles against the pairs that the mask itself shows."""

from unittest import mock

import pytest
import torch
from attention_cases import MASKS, PADDINGS, REACH, Case, cases, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.kernels import intervals as iv
from interp.kernels.masks import MaskRule

CPU = torch.device("cpu")


def one_sample(case: Case) -> tuple[MaskRule, Tensor]:
    """The rule of the first sample, and its pairs `[head, query, key]`."""
    sample, queries, keys = case.call.samples()[0]
    visible = case.visible[sample, :, queries, keys]
    return case.call.narrow(sample, queries, keys).mask.on(CPU), visible


def shown_pairs(shown: iv.Intervals, n_keys: int) -> Tensor:
    """The pairs that the ranges say `[query, key]`."""
    key = torch.arange(n_keys)
    pairs = (key >= shown.low[:, None]) & (key < shown.high[:, None])
    return pairs if shown.seen is None else pairs & shown.seen


@settings(max_examples=80)
@given(how=cases(), looked_at=st.sampled_from((1, 500, 1 << 26)))
def test_ranges_show_the_pairs_of_the_mask_or_there_are_none(how, looked_at):
    mask, visible = one_sample(make(**how))
    with mock.patch.object(iv, "LOOKED_AT", looked_at):
        shown = iv.intervals(mask, CPU)
    if shown is None:
        assert how["mask"] == "dense"
        return
    pairs = shown_pairs(shown, mask.key_length)
    assert torch.equal(pairs.expand_as(visible), visible)
    assert (shown.low >= 0).all()
    assert (shown.low <= shown.high).all()
    assert (shown.high <= mask.key_length).all()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask", [mask for mask in MASKS if mask != "dense"])
def test_every_mask_of_a_rule_is_made_of_ranges(mask, padding):
    rule, _ = one_sample(make(41, 33, mask=mask, padding=padding, n_batch=2))
    assert iv.intervals(rule, CPU) is not None


def test_a_dense_mask_whose_rows_are_unbroken_is_made_of_ranges():
    causal = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    causal[..., 4, :] = False
    rule = MaskRule(9, 9, ahead=None, dense=causal)
    shown = iv.intervals(rule, CPU)
    assert shown is not None
    assert torch.equal(shown_pairs(shown, 9), causal[0, 0])


@pytest.mark.parametrize("row", [0, 4, 8])
def test_one_broken_row_is_enough_for_no_ranges(row):
    dense = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    dense[0, 0, row, 5] = False
    with mock.patch.object(iv, "LOOKED_AT", 1):
        assert iv.intervals(MaskRule(9, 9, ahead=None, dense=dense), CPU) is None


def test_heads_with_masks_of_their_own_have_no_common_ranges():
    dense = torch.ones(1, 2, 9, 9, dtype=torch.bool)
    assert iv.intervals(MaskRule(9, 9, ahead=None, dense=dense), CPU) is None


def test_ranges_are_found_once_for_a_rule():
    rule = MaskRule.causal(9, window=3)
    assert iv.intervals(rule, CPU) is iv.intervals(rule, CPU)


@settings(max_examples=80)
@given(
    how=cases(),
    block=st.sampled_from(((16, 16), (32, 16), (16, 64), (128, 64))),
    reach=st.sampled_from((None, 1, REACH, 50)),
    plain=st.booleans(),
)
def test_tiles_are_looked_at_once_and_full_where_they_say(how, block, reach, plain):
    mask, visible = one_sample(make(**how))
    shown = iv.intervals(mask, CPU)
    if shown is None:
        return
    rows, columns = block
    found = iv.ranges(mask, shown, block, reach, plain)
    room = (0, -mask.key_length % columns, 0, -mask.query_length % rows)
    tiles = torch.nn.functional.pad(visible[0], room, value=False)
    tiles = tiles.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2)
    real = torch.nn.functional.pad(torch.ones_like(visible[0]), room, value=False)
    real = real.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2)
    distance = mask.distance(0, rows * len(tiles), 0, columns * tiles.shape[1])
    near = distance.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2)
    # Queries that are not there do no harm; keys that are not there would be seen.
    whole = (tiles | ~real.any(-1, keepdim=True)).all((2, 3))
    if reach is not None:
        whole &= (near >= reach).all((2, 3))
    touched = tiles.any(3).any(2)
    looked_at, full = coverage(found.of_queries, tiles.shape[1])
    check_tiles(looked_at, full, touched, whole & plain)
    looked_at, full = coverage(found.of_keys, tiles.shape[0])
    check_tiles(looked_at.T, full.T, touched, whole & plain)


def coverage(runs: Tensor, n_tiles: int) -> tuple[Tensor, Tensor]:
    """Which tiles each block looks at `[block, tile]`, and which it takes as full."""
    begin, full_begin, full_end, end = runs.unbind(1)
    assert (begin <= full_begin).all()
    assert (full_begin <= full_end).all()
    assert (full_end <= end).all()
    assert (begin >= 0).all()
    tile = torch.arange(n_tiles)
    looked_at = (tile >= begin[:, None]) & (tile < end[:, None])
    full = (tile >= full_begin[:, None]) & (tile < full_end[:, None])
    assert (end[looked_at.any(1)] <= n_tiles).all()
    return looked_at, full


def check_tiles(looked_at: Tensor, full: Tensor, touched: Tensor, whole: Tensor):
    """Nothing visible is missed, and nothing hidden or near is taken as full."""
    assert looked_at[touched].all()
    assert whole[full].all()


@pytest.mark.parametrize("length", [64, 127, 129])
def test_of_a_causal_map_only_the_diagonal_is_looked_at_pair_by_pair(length):
    mask = MaskRule.causal(length).on(CPU)
    shown = iv.intervals(mask, CPU)
    assert shown is not None
    found = iv.ranges(mask, shown, (16, 16), None, True)
    n_tiles = -(-length // 16)
    block = torch.arange(n_tiles)
    wanted = torch.stack([torch.zeros_like(block), block * 0, block, block + 1], 1)
    # The first block has no full tile: its empty run stands at the end.
    wanted[0] = torch.tensor([0, 1, 1, 1])
    assert found.of_queries.tolist() == wanted.tolist()


def test_a_window_is_looked_at_within_its_reach_only():
    mask = MaskRule.causal(512, window=64).on(CPU)
    shown = iv.intervals(mask, CPU)
    assert shown is not None
    begin, _, _, end = iv.ranges(mask, shown, (16, 16), None, True).of_queries.unbind(1)
    assert int((end - begin).max()) == 64 // 16 + 1
