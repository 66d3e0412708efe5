"""Heads that see the first tokens and the recent ones, against a dense mask."""

import pytest
import torch
from edited_calls import (
    CALLS,
    OFF,
    ON,
    SITE,
    SOME,
    N,
    call_of,
    edited,
    logits_of,
    same,
    weights_of,
)
from tiny_models import tiny

import interp
from interp.capture import Capture
from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet
from interp.interventions.local import LocalHeads
from interp.kernels import weighted
from interp.kernels.definitions import Pattern


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("recent", "first"), [(1, 0), (5, 2), (300, 0)])
def test_what_is_neither_first_nor_recent_is_hidden(name, recent, first):
    call = call_of(name)
    logits, visible, place = logits_of(call)
    near = (torch.arange(N)[:, None] - torch.arange(N)).abs() < recent
    shown = near | (place < first)[:, None, None, :]
    shown = (visible & shown).clone()
    shown[:, OFF] = visible[:, OFF]
    output, pattern = edited(call, LocalHeads(SOME, recent, first))
    wanted = weights_of(call, logits, shown)
    same(pattern, wanted)
    same(output, wanted @ call.value.repeat_interleave(2, 1))


def test_a_decoded_row_sees_what_it_saw_in_the_whole_text():
    call, local = call_of("left padding"), LocalHeads(SOME, 5, 2)
    whole = edited(call, local)[1]
    for row in (N // 2, N - 1):
        one = call.rows(row, row + 1)
        pattern = weighted.attend(one, [Pattern()], local.weights(SITE, one))[2]
        same(pattern["pattern"].nan_to_num(0.0), whole[:, :, row : row + 1])


def test_a_reach_beyond_the_text_changes_nothing():
    call = call_of("plain")
    before, pattern = edited(call, LocalHeads(SOME, N, 0))
    same(pattern, weights_of(call, *logits_of(call)[:2]))
    assert torch.equal(before, weighted.attend(call)[0])


def test_an_encoder_head_looks_as_far_to_both_sides():
    model, inputs = tiny("bert")
    heads = HeadSet.of([(0, 1)], interp.Anatomy.of(model), "encoder")
    with LocalHeads(heads, 3, 0)(model):
        node = interp.trace(model, inputs, capture=Capture((Pattern(),), None))
    pattern = torch.from_numpy(node["encoder"]["pattern"].sel(layer=0).values)
    distance = (torch.arange(12)[:, None] - torch.arange(12)).abs()
    assert torch.equal(pattern[:, 1] > 0, (distance < 3).expand(2, -1, -1))
    assert (pattern[:, ON[0]] > 0).all()


@pytest.mark.parametrize("options", [{"recent": 0}, {"first": -1}])
def test_a_reach_that_leaves_a_query_blind_is_refused(options):
    with pytest.raises(InputError, match="recent from 1 on"):
        LocalHeads(SOME, **options)


def test_cross_attention_is_refused():
    heads = HeadSet.of([(0, 0)], HeadGrid(2, 4, 4, "cross"))
    with pytest.raises(InputError, match="another text"):
        LocalHeads(heads)
