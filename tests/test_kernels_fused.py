"""Outputs and log-sum-exp of the fused kernels, and what they leave to others."""

from unittest import mock

import pytest
import torch
from attention_cases import Case, cases, make
from hypothesis import given, settings
from test_kernels_statistics import ROUNDINGS
from tolerance import assert_as_precise
from torch import Tensor

from interp.kernels import fused, reference, weighted


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
    twins = [outputs(case, case.call.dtype, **how) for how in ROUNDINGS]
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
    with mock.patch.multiple(weighted, ROWS=20, ELEMENTS={"cpu": 3000, "cuda": 1}):
        check(case, *weighted.attend(case.call)[:2])


@pytest.mark.parametrize("mask", ["causal", "packed"])
def test_the_dense_output_is_that_of_torch(mask):
    case = make(33, mask=mask, n_batch=2)
    call = case.call
    wanted = torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=case.visible, enable_gqa=True
    )
    torch.testing.assert_close(reference.attention(call), wanted)
