"""Outputs and log-sum-exp of the fused kernels, and what they leave to others."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from attention_cases import Case, cases, make
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_statistics import roundings
from tolerance import assert_as_precise
from torch import Tensor

from interp.kernels import fused, reference, row_blocks, weighted
from interp.kernels.masks import MaskFunction, MaskRule
from interp.kernels.rules import AttentionCall


def outputs(case: Case, dtype: torch.dtype, **how) -> tuple[list[Tensor], list[Tensor]]:
    """Output and log-sum-exp of each sample by definition, padding cut off."""
    value = case.call.value.to(dtype).repeat_interleave(case.call.group_size, 1)
    maps = case.dense(dtype, **how)
    keys = [keys for _, keys in case.spans()]
    results = [m.p @ value[s, :, keys[s]] for s, m in enumerate(maps)]
    return results, [m.lse for m in maps]


def check(case: Case, output: Tensor, lse: Tensor) -> None:
    """Outputs and log-sum-exp of a kernel against the definition."""
    assert output.dtype == case.call.value.dtype
    truth, true_lse = outputs(case, torch.float64)
    twins = [outputs(case, case.call.dtype, **how) for how in roundings(case)]
    for sample, (queries, _) in enumerate(case.spans()):
        own = output[sample, :, queries]
        # The kernels round what they multiply with the value to the value's type.
        elsewhere = float(torch.finfo(own.dtype).eps * case.call.value.abs().max())
        eager = [twin[0][sample].to(own.dtype) for twin in twins]
        assert_as_precise(
            own, truth[sample], *eager, name="output", elsewhere=elsewhere
        )
        assert_as_precise(
            lse[sample, :, queries],
            true_lse[sample],
            *(twin[1][sample] for twin in twins),
            name="lse",
        )
        beyond = torch.ones(lse.shape[2], dtype=torch.bool)
        beyond[queries] = False
        assert (output[sample, :, beyond] == 0).all()
        assert (lse[sample, :, beyond] == -torch.inf).all()


@settings(max_examples=60)
@given(how=cases())
def test_output_and_lse_are_what_their_definitions_say(how):
    case = make(**how)
    with mock.patch.object(fused, "ROWS", 50):
        done = fused.attend(case.call)
    if how["softcap"] is None and how["dtype"] != torch.float64:
        assert done is not None
        check(case, *done)
    else:
        assert done is None


@settings(max_examples=40)
@given(how=cases())
def test_row_blocks_give_the_same_output_under_any_rule(how):
    case = make(**how)
    with mock.patch.multiple(row_blocks, ROWS=20, ELEMENTS={"cpu": 3000, "cuda": 1}):
        check(case, *weighted.attend(case.call)[:2])


@pytest.mark.parametrize("mask", ["causal", "packed"])
def test_the_dense_output_is_that_of_torch(mask):
    case = make(33, mask=mask, n_batch=2)
    call = case.call
    wanted = torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=case.visible, enable_gqa=True
    )
    torch.testing.assert_close(reference.attention(call), wanted)


def test_a_band_is_never_told_whole(monkeypatch):
    call = make(2048, mask="window", heads=(1, 1)).call
    tile, asked = MaskRule.tile, []

    def seen(rule: MaskRule, *box: int) -> Tensor | None:
        asked.append((box[1] - box[0]) * (box[3] - box[2]))
        return tile(rule, *box)

    monkeypatch.setattr(MaskRule, "tile", seen)
    assert fused.attend(call) is not None
    assert max(asked) <= fused.ROWS * (fused.ROWS + 8)


def on_cuda(call: AttentionCall) -> AttentionCall:
    """The same call on the device, as a model there would make it."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.cuda()

    def asked_there(function: MaskFunction) -> MaskFunction:
        return lambda *index: function(*(i.cpu() for i in index)).cuda()

    mask, score = call.mask, call.score
    return AttentionCall(
        call.query.cuda(),
        call.key.cuda(),
        call.value.cuda(),
        replace(
            score,
            sink_logits=moved(score.sink_logits),
            position_bias=moved(score.position_bias),
        ),
        replace(
            mask,
            key_padding=moved(mask.key_padding),
            query_padding=moved(mask.query_padding),
            dense=moved(mask.dense),
            function=None if mask.function is None else asked_there(mask.function),
            device=torch.device("cuda"),
        ),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@settings(max_examples=200)
@given(
    how=cases(),
    d_head=st.sampled_from((8, 12, 64, 80, 96, 128, 256)),
    is_one_width=st.booleans(),
)
def test_every_kernel_of_a_device_gives_output_and_lse(how, d_head, is_one_width):
    how |= {"d_head": d_head, "softcap": None}
    how |= {"d_value": d_head} if is_one_width else {}
    how |= {"dtype": torch.float32} if how["dtype"] == torch.float64 else {}
    case = make(**how)
    with mock.patch.object(fused, "ROWS", 50):
        done = fused.attend(on_cuda(case.call))
    assert done is not None
    check(case, *(tensor.cpu() for tensor in done))
