"""Gradients of attention: against dense autograd, under any rule and edit."""

from dataclasses import replace
from typing import Any, cast
from unittest import mock

import pytest
import torch
from attention_cases import Case, cases, make
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_reweighting import PARTS, change_of
from test_kernels_statistics import roundings
from tolerance import assert_as_precise
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interp.kernels import fused, row_blocks, weighted
from interp.kernels.backward import differentiable
from interp.kernels.edits import Edit
from interp.kernels.errors import KernelUnavailableError
from interp.kernels.masks import MaskRule
from interp.kernels.reweight import Reweight
from interp.kernels.rules import AttentionCall, ScoreRule


def asking(call: AttentionCall) -> tuple[AttentionCall, dict[str, Tensor]]:
    """The same call, of tensors that ask for gradients."""
    score = call.score
    given = {
        "query": call.query,
        "key": call.key,
        "value": call.value,
        "sinks": score.sink_logits,
        "bias": score.position_bias,
    }
    leaves: dict[str, Any] = {
        name: None if part is None else part.detach().clone().requires_grad_()
        for name, part in given.items()
    }
    sinks, bias = leaves.pop("sinks"), leaves.pop("bias")
    score = replace(score, sink_logits=sinks, position_bias=bias)
    call = replace(call, **leaves, score=score)
    parts = {"sinks": sinks, "bias": bias, **leaves}
    return call, {name: part for name, part in parts.items() if part is not None}


def slope_of(call: AttentionCall) -> Tensor:
    """Derivatives by the output, of its type."""
    shape = *call.query.shape[:3], call.value.shape[3]
    draw = torch.Generator().manual_seed(5)
    return torch.randn(shape, generator=draw).to(call.value.dtype)


def by_autograd(
    case: Case, dtype: torch.dtype, change: Reweight | None = None, **how: Any
) -> dict[str, Tensor]:
    """Gradients through dense attention that is written out."""
    call, leaves = asking(case.call)
    early, rounded = how.get("early", False), how.get("rounded", 0)
    logits = Case(call, case.visible).scores(dtype, 1.0, early, rounded)
    factor: Any = 1.0
    if change is not None:
        part: Any = {name: getattr(change, name).to(dtype) for name in PARTS}
        bias, size = part["tile_bias"], cast("int", change.size)
        for axis, length in ((2, logits.shape[2]), (3, logits.shape[3])):
            bias = bias.repeat_interleave(size, axis).narrow(axis, 0, length)
        logits = logits.masked_fill(~case.visible, 0) * part["scale"][:, None, None]
        logits = logits + part["key_bias"][:, :, None] + bias
        factor = part["key_factor"][:, :, None]
    seen = case.visible & (logits > -torch.inf)
    logits = logits.masked_fill(~seen, -1e30)
    if call.score.sink_logits is not None:
        sinks = call.score.sink_logits.to(dtype)[:, None, None]
        sinks = sinks.expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sinks], -1)
    p = logits.softmax(-1)[..., : seen.shape[-1]] * seen * factor
    output = p @ call.value.to(dtype).repeat_interleave(call.group_size, 1)
    found = torch.autograd.grad(output, list(leaves.values()), slope_of(call).to(dtype))
    return dict(zip(leaves, found, strict=True))


def ours(call: AttentionCall, *edits: Edit) -> dict[str, Tensor]:
    """Gradients through the output of the usual kernel."""
    call, leaves = asking(call)
    with torch.no_grad():
        done = None if edits else fused.attend(call)
        output = (done or weighted.attend(call, edits=edits))[0]
    output = differentiable(call, output, edits)
    found = torch.autograd.grad(output, list(leaves.values()), slope_of(call))
    return dict(zip(leaves, found, strict=True))


def check(case: Case, found: dict[str, Tensor], change: Reweight | None = None) -> None:
    """Gradients against those of the definition."""
    exact = replace(case.call, **in_double(case.call))
    truth = by_autograd(Case(exact, case.visible), torch.float64, change)
    twins = [
        by_autograd(case, case.call.dtype, change, **how) for how in roundings(case)
    ]
    assert found.keys() == truth.keys()
    for name, slope in found.items():
        assert slope.dtype == case.call.query.dtype
        eager = [twin[name] for twin in twins]
        assert_as_precise(slope, truth[name], *eager, name=f"gradient of {name}")


def in_double(call: AttentionCall) -> dict[str, Any]:
    """The tensors of a call in float64, as fields of it."""
    score = call.score
    sinks, bias = score.sink_logits, score.position_bias
    score = replace(
        score,
        sink_logits=None if sinks is None else sinks.double(),
        position_bias=None if bias is None else bias.double(),
    )
    tensors = {n: getattr(call, n).double() for n in ("query", "key", "value")}
    return {**tensors, "score": score}


few_rows = mock.patch.multiple(row_blocks, ROWS=20, ELEMENTS={"cpu": 3000, "cuda": 1})


@settings(max_examples=30)
@given(how=cases(lengths=(1, 7, 33, 70)))
def test_gradients_are_those_of_dense_attention(how):
    case = make(**how)
    with few_rows:
        check(case, ours(case.call))


@settings(max_examples=12)
@given(how=cases(lengths=(1, 7, 33)), seed=st.integers(0, 99))
def test_gradients_under_a_change_are_those_of_the_changed_weights(how, seed):
    case = make(**how)
    change = change_of(case, PARTS, 5, seed)
    with few_rows:
        check(case, ours(case.call, change), change)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_a_bias_that_samples_or_heads_share_gets_the_sum_of_their_gradients(shape):
    case = make(12, n_batch=2, padding="left", bias=True, dtype=torch.float64)
    bias = torch.randn(*shape, 12, 12, dtype=torch.float64)
    score = replace(case.call.score, position_bias=bias)
    case = Case(replace(case.call, score=score), case.visible)
    check(case, ours(case.call))


def test_workers_together_give_what_one_gives():
    case = make(70, n_batch=2, sinks=True, bias=True, dtype=torch.float64)
    with few_rows, mock.patch.object(row_blocks, "WORTH_A_WORKER", 1):
        alone = ours(case.call)
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            together = ours(case.call)
        finally:
            torch.set_num_threads(before)
    for name, slope in alone.items():
        torch.testing.assert_close(together[name], slope)


def test_only_what_asks_gets_a_gradient():
    call, leaves = asking(make(9, sinks=True, bias=True).call)
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == "value")
    output = differentiable(call, torch.zeros(1, 4, 9, 8))
    output.sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {"value"}


def test_without_gradients_the_output_is_handed_on():
    call, _ = asking(make(9).call)
    output = torch.zeros(1, 4, 9, 8)
    assert differentiable(make(9).call, output) is output
    with torch.no_grad():
        assert differentiable(call, output) is output


def test_a_gradient_of_a_gradient_is_refused():
    call, leaves = asking(make(9).call)
    output = differentiable(call, torch.zeros(1, 4, 9, 8))
    with pytest.raises(KernelUnavailableError, match="create_graph=True"):
        torch.autograd.grad(output.sum(), leaves["query"], create_graph=True)


def test_a_gradient_that_an_edit_would_lose_is_refused():
    call, _ = asking(make(9).call)
    change = Reweight(key_bias=torch.zeros(1, 4, 9, requires_grad=True))
    output = differentiable(call, torch.zeros(1, 4, 9, 8), [change])
    with pytest.raises(KernelUnavailableError, match="itself made of what requires"):
        output.sum().backward()


class Seen(TorchDispatchMode):
    """The number of values of the largest tensor that an operation gives."""

    largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return result


@pytest.mark.parametrize("mask", [MaskRule.causal(4096), MaskRule.causal(4096, 100)])
def test_memory_stays_linear(mask):
    n = mask.query_length
    one = torch.randn(1, 1, n, 8)
    score = ScoreRule(1.0, softcap=5.0)
    call, leaves = asking(AttentionCall(one, one, one, score, mask))
    with Seen() as seen:
        with torch.no_grad():
            output = weighted.attend(call)[0]
        output = differentiable(call, output, [Reweight(scale=torch.ones(1))])
        torch.autograd.grad(output.sum(), list(leaves.values()))
    assert n * 8 <= seen.largest <= row_blocks.ELEMENTS["cpu"] < n * n
