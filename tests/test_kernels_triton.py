"""The GPU programs against the definitions in float64, on any rule, type and shape."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from attention_cases import MASKS, PADDINGS, Case, cases, make
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_kernels_statistics import check, wanted_of
from torch import Tensor
from triton_cases import (
    DEVICE,
    ON_GPU,
    SMALL,
    TILES,
    WIDTHS,
    Poisoned,
    moved,
    needs_triton,
    run,
    triton_tiles,
)

from interp.kernels import definitions as d
from interp.kernels import statistics, weighted

pytestmark = needs_triton

EXAMPLES = 20 if ON_GPU else 6
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (16, 48, 64)
"""Sides of the blocks of block maps that the programs themselves sum."""

SIZE = SIZES[0]

WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""To make an example smaller takes minutes under the interpreter."""


def check_triton(case: Case, given_lse: bool = False, size: int = SIZE) -> None:
    """Our arrays against the definition, with a log-sum-exp of ours or another's."""
    lse = weighted.attend(case.call)[1] if given_lse else None
    arrays = run(case.call, wanted_of(case, size), "triton", lse)
    check(case, arrays, arrays["lse"] if lse is None else lse, size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given_lse", [False, True])
@settings(max_examples=EXAMPLES, phases=WITHOUT_SHRINKING)
@given(data=st.data())
def test_statistics_are_what_their_definitions_say(dtype, given_lse, data):
    how = data.draw(cases(SMALL, WIDTHS, (dtype,)))
    tile, size = data.draw(st.sampled_from(TILES)), data.draw(st.sampled_from(SIZES))
    with triton_tiles(*tile):
        check_triton(make(**how), given_lse, size)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_every_mask_goes_with_every_padding(mask, padding):
    case = make(17, 35, mask=mask, padding=padding, n_batch=2, heads=(2, 1), base=5)
    with triton_tiles(16, 16):
        check_triton(case)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_of_a_head_fits_the_tiles_of_the_tables(width, dtype):
    check_triton(make(41, d_head=width, dtype=dtype, heads=(2, 1), softcap=20.0))


@pytest.mark.parametrize("mask", ["causal", "window", "packed", "dense"])
def test_tiles_of_the_tables_are_crossed_as_well(mask):
    check_triton(make(129, 252, mask=mask, heads=(2, 1), sinks=True, d_head=64))


@pytest.mark.parametrize("n_query", [1, 3, 16])
def test_few_queries_see_many_keys(n_query):
    check_triton(make(n_query, 300, heads=(4, 1), d_head=16, padding="left"))


def test_stripes_of_queries_add_up(monkeypatch):
    from interp.kernels import triton_launch

    monkeypatch.setattr(triton_launch, "MASK_BYTES", 1)
    case = make(260, 20, mask="dense", heads=(1, 1), sinks=True, bias=True)
    with triton_tiles(64, 16):
        check_triton(case)


def test_a_mask_is_made_once_for_all_statistics(monkeypatch):
    from interp.kernels import triton_launch

    passes, stripes = [], triton_launch.Launcher.stripes

    def counted(own):
        passes.append(own.call.mask.query_length)
        return stripes(own)

    monkeypatch.setattr(triton_launch.Launcher, "stripes", counted)
    case = make(35, mask="dense", heads=(2, 1))
    with triton_tiles(16, 16):
        check_triton(case, given_lse=True)
    # The last few queries, of which one statistic is, have their own.
    assert passes.count(35) == len(case.call.samples())


@cache
def all_together() -> tuple[Case, dict[str, Tensor]]:
    case = make(35, mask="window", padding="holes", heads=(2, 1), sinks=True)
    with triton_tiles(16, 16):
        return case, run(case.call, wanted_of(case, SIZE), "triton")


@pytest.mark.parametrize("index", range(len(wanted_of(make()))))
def test_a_statistic_alone_is_the_one_among_all(index):
    case, among = all_together()
    with triton_tiles(16, 16):
        alone = run(case.call, [wanted_of(case, SIZE)[index]], "triton")
    for name, values in alone.items():
        torch.testing.assert_close(values, among[name], equal_nan=True)


def test_a_negative_scale_turns_the_scores_around():
    case = make(33, heads=(2, 1), softcap=20.0)
    score = replace(case.call.score, scale=-case.call.score.scale)
    with triton_tiles(16, 16):
        check_triton(Case(replace(case.call, score=score), case.visible))


def test_strided_tensors_are_read_in_place_or_copied():
    case = make(33, d_head=16, heads=(2, 1), n_batch=2)

    def woven(tensor: Tensor, room: int) -> Tensor:
        wide = torch.nn.functional.pad(tensor.transpose(1, 2), (room, 0))
        return wide.transpose(1, 2)[..., room:]

    for room in (4, 1):
        query, key = (woven(t, room) for t in (case.call.query, case.call.key))
        call = replace(case.call, query=query, key=key)
        with triton_tiles(16, 16):
            check_triton(Case(call, case.visible))


def test_padding_may_be_a_strided_tensor():
    case = make(33, padding="holes", heads=(2, 1), n_batch=2)
    mask = case.call.mask
    assert mask.key_padding is not None
    woven = mask.key_padding.T.contiguous().T
    call = replace(case.call, mask=replace(mask, key_padding=woven))
    with triton_tiles(16, 16):
        check_triton(replace(case, call=call))


@pytest.mark.parametrize("mask", ["causal", "dense"])
def test_a_deterministic_run_gives_the_same_bits_again(mask, monkeypatch):
    """And says so in how it is launched: no program adds with atomics then."""
    from interp.kernels import triton_launch

    seen = []
    launch = triton_launch.Launcher.columns

    def columns(self, stripe, near, row_sums, best, sums, maps, size, places):
        shared = [name for name in ("ENTROPY", "DISTANCE", "CLIPPED", "LOCAL")]
        seen.append(best is None and all(places[name] < 0 for name in shared))
        launch(self, stripe, near, row_sums, best, sums, maps, size, places)

    monkeypatch.setattr(triton_launch.Launcher, "columns", columns)
    case = make(65, mask=mask, heads=(2, 1), sinks=True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with triton_tiles(16, 32):
            first, again = (
                run(case.call, wanted_of(case, 64), "triton") for _ in range(2)
            )
    finally:
        torch.use_deterministic_algorithms(before)
    assert seen
    assert all(seen)
    for name in first:
        torch.testing.assert_close(
            first[name], again[name], rtol=0, atol=0, equal_nan=True
        )
    check(case, first, first["lse"], 64)


def test_poison_is_seen_where_memory_is_read_before_it_is_written():
    with Poisoned():
        assert torch.empty(3, device=DEVICE).isnan().all()
        assert torch.zeros(3, device=DEVICE).new_empty(3).isnan().all()
        assert (torch.empty_like(torch.zeros(3)).int() != 0).all()


def test_the_given_lse_is_the_norm():
    case = make(33, heads=(2, 1))
    call = moved(case.call, DEVICE)
    lse = statistics.compute(call, [d.Lse()], impl="tiled")["lse"]
    with triton_tiles(16, 16):
        half = statistics.compute(
            call, [d.Received()], lse=lse + torch.tensor(2.0).log(), impl="triton"
        )
        whole = statistics.compute(call, [d.Received()], lse=lse, impl="triton")
    torch.testing.assert_close(half["received"] * 2, whole["received"])
