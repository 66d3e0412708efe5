"""Attention under a change, by every implementation, against a dense definition."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from attention_cases import MASKS, Case, cases, make, moved
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_statistics import roundings
from tolerance import assert_as_precise
from torch import Tensor
from triton_cases import DEVICE, ON_GPU, SMALL, TILES, TRITON, Poisoned, needs_triton

from interp.kernels import definitions as d
from interp.kernels import reference, reweighting, row_blocks, weighted
from interp.kernels.edits import Block
from interp.kernels.errors import KernelUnavailableError, ShapeError
from interp.kernels.masks import MaskRule
from interp.kernels.reweight import Reweight
from interp.kernels.reweighting import reweighted
from interp.kernels.rules import AttentionCall, ScoreRule

IMPLEMENTATIONS = ("torch", TRITON)
HALF = (torch.bfloat16, torch.float16) if ON_GPU else (torch.float16,)
"""Triton's interpreter multiplies the bits of bfloat16, not its numbers."""

PARTS = ("key_bias", "tile_bias", "key_factor", "scale")
SIZES = (5, 16, 48, 64)
"""Of blocks: parts of a tile, one tile, several, and what is no multiple of one."""


def definition(
    case: Case, change: Reweight, dtype: torch.dtype, **how
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the whole batch, from dense logits."""
    call = case.call
    logits = case.scores(dtype, 1.0, how.get("early", False), how.get("rounded", 0))
    if change.scale is not None:
        logits = logits * change.scale.to(dtype)[:, None, None]
    if change.key_bias is not None:
        logits = logits + change.key_bias.to(dtype)[:, :, None]
    if change.tile_bias is not None and change.size is not None:
        bias = change.tile_bias.to(dtype)
        for axis, length in ((2, logits.shape[2]), (3, logits.shape[3])):
            bias = bias.repeat_interleave(change.size, axis).narrow(axis, 0, length)
        logits = logits + bias
    logits = logits.masked_fill(~case.visible, -torch.inf)
    lse = logits.logsumexp(-1)
    norm, sink = lse, call.score.sink_logits
    if sink is not None:
        norm = torch.logaddexp(lse, sink.to(dtype)[:, None])
    p = (logits - norm[..., None]).exp().masked_fill(logits == -torch.inf, 0.0)
    if change.key_factor is not None:
        p = p * change.key_factor.to(dtype)[:, :, None]
    return p @ call.value.to(dtype).repeat_interleave(call.group_size, 1), lse


def check(case: Case, change: Reweight, output: Tensor, lse: Tensor) -> None:
    """What an implementation gave against the definition."""
    call = case.call
    assert output.dtype == call.value.dtype
    true_output, true_lse = definition(case, change, torch.float64)
    twins = [definition(case, change, call.dtype, **how) for how in roundings(case)]
    factor = 1.0 if change.key_factor is None else float(change.key_factor.abs().max())
    # A fused program rounds what it multiplies with the value to the value's type.
    elsewhere = torch.finfo(output.dtype).eps * float(call.value.abs().max()) * factor
    eager = [twin[0].to(output.dtype) for twin in twins]
    assert_as_precise(output, true_output, *eager, name="output", elsewhere=elsewhere)
    assert_as_precise(lse, true_lse, *(twin[1] for twin in twins), name="lse")
    blind = true_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, blind)
    assert (output[blind] == 0).all()


def change_of(
    case: Case, parts: tuple[str, ...] = PARTS, size: int = 16, seed: int = 0
) -> Reweight:
    """A random change of some kinds, some of it shared by heads or samples."""
    draw = torch.Generator().manual_seed(seed)
    call = case.call
    batch, heads, n_queries, _ = call.query.shape
    n_keys = call.key.shape[2]
    blocks = -(-n_queries // size), -(-n_keys // size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def hidden(part: Tensor, share: float) -> Tensor:
        gone = torch.rand(part.shape, generator=draw) < share
        return part.masked_fill(gone, -torch.inf)

    every = {
        "key_bias": hidden(normal(1, heads, n_keys), 0.2),
        "tile_bias": hidden(normal(batch, 1 if seed % 2 else heads, *blocks), 0.4),
        "key_factor": normal(batch, 1, n_keys),
        "scale": normal(heads),
    }
    own_size = size if "tile_bias" in parts else None
    chosen: dict[str, Any] = {name: every[name] for name in parts}
    return Reweight(size=own_size, **chosen)


def run(case: Case, change: Reweight, impl: str) -> tuple[Tensor, Tensor]:
    """`reweighted` where the implementation is at home; the results on CPU."""
    if impl != "triton":
        return reweighted(case.call, change, impl)
    there = {name: getattr(change, name) for name in PARTS}
    there = {n: None if p is None else p.to(DEVICE) for n, p in there.items()}
    with Poisoned():
        output, lse = reweighted(
            moved(case.call, DEVICE), replace(change, **there), impl
        )
    return output.cpu(), lse.cpu()


@contextmanager
def triton_tiles(rows: int, keys: int) -> Iterator[None]:
    """Tiles of these sizes, and parts of two of them."""
    from interp.kernels import triton_launch, triton_reweighting
    from interp.kernels.triton_tables import TileSizes

    sizes = TileSizes(rows, keys, 4, 2)
    tables = {
        "ATTENTION": {256: sizes},
        "ATTENTION_IN_SINGLE": {256: sizes},
    }
    with (
        mock.patch.multiple(triton_reweighting, **tables),
        mock.patch.object(triton_launch, "TILES_OF_A_PART", 2),
    ):
        yield


def small_tiles(impl: str) -> AbstractContextManager[None]:
    """Small tiles for the implementation that has any."""
    return triton_tiles(16, 16) if impl == "triton" else nullcontext()


@settings(max_examples=60)
@given(
    how=cases(),
    parts=st.sets(st.sampled_from(PARTS)),
    size=st.sampled_from(SIZES),
    seed=st.integers(0, 99),
)
def test_row_blocks_give_what_the_definition_says(how, parts, size, seed):
    case = make(**how)
    change = change_of(case, tuple(parts), size, seed)
    with mock.patch.multiple(row_blocks, ROWS=20, ELEMENTS={"cpu": 3000, "cuda": 1}):
        check(case, change, *reweighted(case.call, change, "torch"))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@settings(max_examples=40 if ON_GPU else 12)
@given(data=st.data())
def test_the_program_gives_what_the_definition_says(dtype, data):
    case = make(**data.draw(cases(SMALL, (8, 16, 20, 80), (dtype,))))
    parts = tuple(data.draw(st.sets(st.sampled_from(PARTS))))
    size, seed = data.draw(st.sampled_from(SIZES)), data.draw(st.integers(0, 99))
    change = change_of(case, parts, size, seed)
    with triton_tiles(*data.draw(st.sampled_from(TILES))):
        check(case, change, *run(case, change, "triton"))


@needs_triton
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padding", ["left", "holes"])
def test_blocks_go_with_every_mask_and_padding(mask, padding):
    case = make(65, 73, mask=mask, padding=padding, n_batch=2, heads=(2, 1), base=5)
    change = change_of(case, size=32)
    with triton_tiles(16, 16):
        check(case, change, *run(case, change, "triton"))


@needs_triton
@pytest.mark.parametrize("width", [(64, 128), (128, 64), (256, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("n_query", [1, 40] + [252] * ON_GPU)
def test_the_tables_tiles_serve_every_width(width, dtype, n_query):
    widths = {"d_head": width[0], "d_value": width[1]}
    case = make(n_query, 252, heads=(2, 1), dtype=dtype, **widths)
    change = change_of(case, size=64)
    check(case, change, *run(case, change, "triton"))


@needs_triton
@pytest.mark.parametrize("sinks", [False, True])
def test_one_query_looks_at_its_keys_in_parts(sinks):
    case = make(1, 252, heads=(4, 2), sinks=sinks, padding="left", n_batch=2)
    change = change_of(case)
    with triton_tiles(16, 16):
        check(case, change, *run(case, change, "triton"))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_change_is_plain_attention(impl):
    case = make(65, softcap=20.0, sinks=True)
    zero = Reweight(
        key_bias=torch.zeros(1, 1, 65),
        tile_bias=torch.zeros(1, 1, 5, 5),
        size=16,
        scale=torch.ones(4),
    )
    with small_tiles(impl):
        for change in (Reweight(), zero):
            check(case, Reweight(), *run(case, change, impl))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_factor_of_one_changes_nothing(impl):
    case = make(65)
    ones = Reweight(key_factor=torch.ones(1, 4, 65))
    with small_tiles(impl):
        for ours, plain in zip(
            run(case, ones, impl), run(case, Reweight(), impl), strict=True
        ):
            assert torch.equal(ours, plain)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("which", ["key_bias", "tile_bias"])
def test_rows_that_lose_every_key_give_zeros(impl, sinks, which):
    case = make(33, sinks=sinks)
    gone = {
        "key_bias": Reweight(key_bias=torch.full((1, 1, 33), -torch.inf)),
        "tile_bias": Reweight(tile_bias=torch.full((1, 1, 3, 3), -torch.inf), size=16),
    }
    with small_tiles(impl):
        output, lse = run(case, gone[which], impl)
    assert (output == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [5, 16, 32])
def test_a_dropped_block_is_a_masked_one(impl, size):
    case = make(65, mask="window", heads=(2, 1))
    change = change_of(case, ("tile_bias",), size)
    assert change.tile_bias is not None
    dropped = change.tile_bias == -torch.inf
    only_dropped = torch.zeros(dropped.shape).masked_fill(dropped, -torch.inf)
    pairs = dropped.repeat_interleave(size, 2).repeat_interleave(size, 3)
    masked = replace(case, visible=case.visible & ~pairs[..., :65, :65])
    with small_tiles(impl):
        ours = run(case, replace(change, tile_bias=only_dropped), impl)
    check(masked, Reweight(), *ours)


@needs_triton
def test_dropped_blocks_are_never_read():
    case = make(64, heads=(2, 1), d_head=16, d_value=16)
    bias = torch.zeros(1, 1, 2, 2)
    bias[..., 0] = -torch.inf
    for tensor in (case.call.key, case.call.value):
        tensor[:, :, :32] = torch.nan
    with triton_tiles(16, 16):
        output, lse = run(case, Reweight(tile_bias=bias, size=32), "triton")
    assert output.isfinite().all()
    assert torch.equal(lse[..., 32:].isfinite(), torch.ones(1, 2, 32).bool())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_bias_of_the_logarithm_is_a_factor_and_a_new_norm(impl):
    case = make(33)
    factor = torch.ones(1, 4, 33)
    factor[..., 0] = torch.tensor([0.2, 0.6, 1.5, 3.0])
    scaled = reference.weights(case.call)[0] * factor[:, :, None]
    scaled /= scaled.sum(-1, keepdim=True)
    wanted = scaled @ case.call.value.repeat_interleave(2, 1)
    with small_tiles(impl):
        output, _ = run(case, Reweight(key_bias=factor.log()), impl)
    torch.testing.assert_close(output, wanted)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_some_tokens_of_a_sample_keep_their_blocks(impl):
    case = make(65, 65, mask="full", n_batch=2)
    change, whole = change_of(case), slice(0, 65)
    queries, keys = slice(7, 40), slice(21, 65)
    rows = replace(case, call=case.call.narrow(1, queries, whole))
    part = replace(case, call=case.call.narrow(1, queries, keys))
    inside = torch.full((1, 1, 65), -torch.inf)
    inside[..., keys] = 0
    assert change.key_bias is not None
    only = replace(change, key_bias=change.key_bias + inside)
    with small_tiles(impl):
        wanted = run(rows, only.narrow(1, queries, whole), impl)
        ours = run(part, change.narrow(1, queries, keys), impl)
    for own, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(own, other)


def test_statistics_are_those_of_the_changed_weights():
    case = make(33)
    change = change_of(case, ("key_bias", "key_factor"))
    assert change.key_factor is not None
    change = replace(change, key_factor=change.key_factor.abs())
    for own in (change, replace(change, key_factor=None)):
        values = replace(case.call, value=torch.eye(33).expand(1, 2, -1, -1))
        p, _ = definition(replace(case, call=values), own, torch.float64)
        arrays = weighted.attend(case.call, [d.Entropy()], [own])[2]
        sees = ~arrays["entropy"].isnan()
        entropy = torch.special.entr(p).sum(-1).float()
        torch.testing.assert_close(arrays["entropy"][sees], entropy[sees])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (Reweight(key_bias=torch.zeros(1, 4, 8)), "key_bias"),
        (Reweight(key_bias=torch.zeros(2, 1, 7)), "key_bias"),
        (Reweight(key_factor=torch.zeros(1, 3, 7)), "key_factor"),
        (Reweight(scale=torch.ones(1)), "scale"),
        (Reweight(tile_bias=torch.zeros(1, 1, 2, 2), size=3), "tile_bias"),
        (Reweight(tile_bias=torch.zeros(1, 1, 2, 2)), "size"),
        (Reweight(tile_bias=torch.zeros(1, 1, 2, 2), size=0), "size"),
        (Reweight(size=4), "tile_bias"),
    ],
)
def test_what_does_not_fit_is_named(change, named):
    with pytest.raises(ShapeError, match=rf"(?s){named}.*got.*Pass"):
        reweighted(make(7).call, change)


def test_an_unknown_implementation_names_those_that_there_are():
    call = make(7).call
    with pytest.raises(KernelUnavailableError, match="auto, triton, torch"):
        reweighted(call, Reweight(), "cuda")
    assert reweighting.choose("auto", call) == "torch"


def test_memory_stays_linear():
    n, asked = 4096, []
    one = torch.randn(1, 1, n, 8)
    call = AttentionCall(one, one, one, ScoreRule(1.0), MaskRule.causal(n))
    change = Reweight(tile_bias=torch.zeros(1, 1, n // 64, n // 64), size=64)
    inner = Reweight.change_logits

    def seen(own: Reweight, logits: Tensor, block: Block) -> None:
        asked.append(logits.numel())
        inner(own, logits, block)

    with mock.patch.object(Reweight, "change_logits", seen):
        reweighted(call, change, "torch")
    assert max(asked) <= row_blocks.ELEMENTS["cpu"] < n * n
