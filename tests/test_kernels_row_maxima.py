"""Row maxima as integers, and rows by the block that holds theirs."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.kernels.row_maxima import ByBlock, numbers, places, unpack_places

BLIND = -(2**63)


def packed(number: Tensor, place: Tensor) -> Tensor:
    """As the GPU programs pack them: an order by number, then by the lower place."""
    bits = number.float().view(torch.int32)
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long()
    return (ordered << 32) | (0x7FFFFFFF - place)


def test_what_was_packed_is_unpacked():
    number = torch.tensor([0.0, -0.5, -torch.inf, 3.25, -1e-30])
    place = torch.tensor([0, 7, 131_071, 2**31 - 1, 1])
    whole = packed(number, place)
    assert torch.equal(numbers(whole), number.float())
    assert torch.equal(places(whole).long(), place)
    assert torch.equal(unpack_places(whole), place)


def test_the_largest_number_wins_and_of_equal_ones_the_lower_place():
    number = torch.tensor([-3.0, -1.0, -1.0, -2.0])
    best = packed(number, torch.tensor([0, 5, 4, 1])).max()
    assert numbers(best[None]).item() == -1.0
    assert places(best[None]).item() == 4


@given(
    blocks=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    rows=st.sampled_from([1, 2, 16]),
)
def test_every_row_lies_in_one_tile_of_its_own_block(blocks, rows):
    place = torch.tensor([blocks, blocks[::-1]])
    found = ByBlock.of(packed(torch.zeros(place.shape), place), 5, rows)
    for head in range(2):
        seen = []
        for tile, block in enumerate(found.block_of_tile[head].tolist()):
            if block == 5:
                continue
            begin, end = found.first_row[head, block : block + 2].tolist()
            begin += (tile - int(found.first_tile[head, block])) * rows
            own = found.order[head, begin : min(begin + rows, end)].tolist()
            assert {int(place[head, row]) for row in own} == {block}
            seen += own
        assert sorted(seen) == list(range(len(blocks)))


def test_rows_that_see_nothing_are_in_some_tile_too():
    best = torch.full((1, 3), BLIND)
    found = ByBlock.of(best, 2, 16)
    assert sorted(found.order[0].tolist()) == [0, 1, 2]
    assert int(found.first_tile[0, -1]) == 1
