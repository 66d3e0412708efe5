"""Mask functions of transformers read as rules, and those that cannot be."""

import pytest
import torch
from transformers import masking_utils as hf

from interp.kernels.masks import MaskRule
from interp.masks import lazy_mask, read_band


def visible_of(rule: MaskRule) -> torch.Tensor:
    shape = rule.query_length, rule.key_length
    tile = rule.tile(0, shape[0], 0, shape[1])
    return torch.ones(1, 1, *shape, dtype=torch.bool) if tile is None else tile


def asked_pair_by_pair(function, n_batch, n_query, n_key, q_offset=0, k_offset=0):
    """The mask as transformers would build it."""
    index = [
        torch.arange(n_batch)[:, None, None, None],
        torch.zeros(1, 1, 1, 1, dtype=torch.long),
        torch.arange(n_query)[None, None, :, None] + q_offset,
        torch.arange(n_key)[None, None, None, :] + k_offset,
    ]
    return function(*index).expand(n_batch, 1, n_query, n_key)


RECOGNIZED = {
    "causal": (hf.causal_mask_function, (0, None)),
    "causal window": (hf.sliding_window_causal_mask_function(7), (0, 6)),
    "full": (hf.bidirectional_mask_function, (None, None)),
    "window on both sides": (
        hf.sliding_window_bidirectional_mask_function(7),
        (7, 7),
    ),
}


@pytest.mark.parametrize("name", RECOGNIZED)
@pytest.mark.parametrize("box", [(40, 40, 0, 0), (1, 9, 30, 22), (5, 40, 35, 0)])
def test_a_recognized_function_becomes_a_band(name, box):
    function, (ahead, behind) = RECOGNIZED[name]
    n_query, n_key, q_offset, k_offset = box
    rule = lazy_mask(2, n_query, n_key, q_offset, k_offset, mask_function=function)
    assert (rule.ahead, rule.behind, rule.function) == (ahead, behind, None)
    wanted = asked_pair_by_pair(function, 2, *box)
    assert torch.equal(visible_of(rule).expand_as(wanted), wanted)


def test_chunks_keep_their_function_within_the_causal_band():
    padding = torch.tensor([0, 3])
    chunks = hf.and_masks(hf.chunked_overlay(5, padding), hf.causal_mask_function)
    rule = lazy_mask(2, 23, 23, mask_function=chunks)
    assert (rule.ahead, rule.behind) == (0, None)
    assert rule.function is not None
    wanted = asked_pair_by_pair(chunks, 2, 23, 23)
    assert torch.equal(visible_of(rule), wanted)
    own = rule.narrow(1, slice(3, 23), slice(3, 23))
    assert torch.equal(visible_of(own), wanted[1:, :, 3:, 3:])


def test_packed_documents_are_told_apart_in_every_sample():
    documents = torch.tensor([[0] * 4 + [1] * 6, [0] * 7 + [1] * 3])
    packed = hf.and_masks(
        hf.causal_mask_function, hf.packed_sequence_mask_function(documents)
    )
    rule = lazy_mask(2, 10, 10, mask_function=packed)
    wanted = asked_pair_by_pair(packed, 2, 10, 10)
    assert torch.equal(visible_of(rule), wanted)
    assert not torch.equal(wanted[0], wanted[1])


@pytest.mark.parametrize("use_vmap", [False, True])
def test_an_unknown_function_is_asked_tile_by_tile(use_vmap):
    def prefix(batch, head, query, key):
        return (key <= query) | (key < 4)

    rule = lazy_mask(1, 12, 12, mask_function=prefix, use_vmap=use_vmap)
    assert (rule.ahead, rule.behind) == (None, None)
    wanted = asked_pair_by_pair(prefix, 1, 12, 12)
    assert torch.equal(visible_of(rule), wanted)
    tile = rule.tile(2, 9, 3, 7)
    assert tile is not None
    assert torch.equal(tile, wanted[..., 2:9, 3:7])


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_reading_that_the_function_contradicts_is_not_believed(off_by):
    """A version of transformers may come to count windows another way."""

    def sliding_window_overlay(sliding_window):
        def inner_mask(batch, head, query, key):
            return key > query - sliding_window - off_by

        return inner_mask

    other = sliding_window_overlay(7)
    other.__module__ = hf.__name__
    other.__qualname__ = "sliding_window_overlay.<locals>.inner_mask"
    assert read_band(other).behind == 6
    both = hf.and_masks(other, hf.causal_mask_function)
    rule = lazy_mask(1, 500, 500, mask_function=both)
    wanted = asked_pair_by_pair(both, 1, 500, 500)
    assert torch.equal(visible_of(rule), wanted)


def test_padding_is_cut_to_the_keys_of_the_call():
    real = torch.ones(2, 20).long()
    real[1, :11] = 0
    rule = lazy_mask(2, 1, 8, q_offset=19, kv_offset=12, attention_mask=real)
    assert rule.key_padding is None
    rule = lazy_mask(2, 1, 12, q_offset=19, kv_offset=8, attention_mask=real)
    assert rule.key_padding is not None
    assert rule.key_padding.int().tolist() == [[1] * 12, [0] * 3 + [1] * 9]
    ahead = lazy_mask(2, 20, 24, attention_mask=real)
    assert ahead.key_padding is not None
    assert not ahead.key_padding[:, 20:].any()


def test_reading_a_mask_draws_no_random_numbers():
    before = torch.get_rng_state()
    lazy_mask(1, 40, 40, mask_function=hf.causal_mask_function)
    assert torch.equal(torch.get_rng_state(), before)
