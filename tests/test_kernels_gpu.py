"""What only a GPU shows of its programs: real sizes, memory, and no waiting."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import matrix_units
import pytest
import torch
from tolerance import assert_as_precise
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels import statistics
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

EVERYTHING = (*d.ROWS, *d.COLUMNS, d.BlockMap(64))
MEBIBYTE = 1 << 20
WINDOW = 1_000
SINK = 0.5


@pytest.fixture(autouse=True)
def _the_same_numbers_each_time():
    torch.manual_seed(0)


def call_of(
    n_query: int,
    n_key: int,
    *,
    heads: tuple[int, int] = (32, 8),
    width: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    behind: int | None = None,
    sinks: bool = False,
) -> AttentionCall:
    """A random causal call whose queries are the last positions."""

    def normal(n_heads: int, length: int) -> Tensor:
        return torch.randn(1, n_heads, length, width, device="cuda", dtype=dtype)

    key = normal(heads[1], n_key)
    learned = torch.full((heads[0],), SINK, device="cuda") if sinks else None
    mask = MaskRule(n_query, n_key, behind=behind, query_offset=n_key - n_query)
    score = ScoreRule(scale=width**-0.5, sink_logits=learned)
    return AttentionCall(normal(heads[0], n_query), key, key, score, mask)


def exact_lse(call: AttentionCall, dtype: torch.dtype, rows: slice) -> Tensor:
    """Log-sum-exp in nats of some rows `[head, query]`, computed in a type."""
    return torch.logsumexp(scores(call, dtype, rows), -1)


def scores(
    call: AttentionCall, dtype: torch.dtype, rows: slice, columns: slice = slice(None)
) -> Tensor:
    """Scores of some pairs in nats `[head, query, key]`, -inf where hidden."""
    query = call.query[0, :, rows].to(dtype)
    key = call.key[0, :, columns].to(dtype).repeat_interleave(call.group_size, 0)
    mask = call.mask
    q = torch.arange(mask.query_length, device="cuda")[rows] + mask.query_offset
    k = torch.arange(mask.key_length, device="cuda")[columns] + mask.key_offset
    back = q[:, None] - k
    hidden = back < 0
    if mask.behind is not None:
        hidden |= back > mask.behind
    # As a twin in half precision would make them, were its logits not rounded to that.
    is_twin = dtype == torch.float32 and call.query.dtype != torch.float32
    dots = matrix_units.products(query, key) if is_twin else query @ key.mT
    return (dots * call.score.scale).masked_fill(hidden, -torch.inf)


def some_rows(
    call: AttentionCall,
    dtype: torch.dtype,
    rows: slice,
    lse: Tensor | None = None,
) -> dict[str, Tensor]:
    """Row statistics of some queries by definition, with a log-sum-exp if given."""
    logits = scores(call, dtype, rows)
    lse = logits.logsumexp(-1) if lse is None else lse[0, :, rows]
    norm = lse
    if call.score.sink_logits is not None:
        sink = call.score.sink_logits.to(dtype)[:, None]
        norm = torch.logaddexp(lse, sink)
    p = (logits - norm[..., None]).exp()
    q = torch.arange(call.mask.query_length, device="cuda")[rows]
    back = (q + call.mask.query_offset)[:, None] - torch.arange(
        call.mask.key_length, device="cuda"
    )
    return {
        "lse": lse,
        "entropy": torch.special.entr(p).sum(-1),
        "distance": (p * back).sum(-1),
        "waad": (p * back.clamp(max=10)).sum(-1),
        "sink_mass": p[..., :4].sum(-1),
        "first_mass": p[..., 0],
        "local_mass": (p * (back < 128)).sum(-1),
        "max_mass": p.amax(-1),
    }


def by_given(given: dict[str, Tensor], name: str) -> list[Tensor]:
    """What a rounded log-sum-exp makes of a statistic; it is no excuse for itself."""
    return [] if name == "lse" else [given[name]]


def some_columns(
    call: AttentionCall,
    dtype: torch.dtype,
    columns: slice,
    lse: Tensor | None = None,
) -> dict[str, Tensor]:
    """Column statistics of some keys by definition, with a log-sum-exp if given."""
    if lse is None:
        blocks = range(0, call.mask.query_length, 256)
        parts = [exact_lse(call, dtype, slice(q0, q0 + 256)) for q0 in blocks]
        norm = torch.cat(parts, 1)
    else:
        norm = lse[0]
    if call.score.sink_logits is not None:
        norm = torch.logaddexp(norm, call.score.sink_logits.to(dtype)[:, None])
    logits = scores(call, dtype, slice(None), columns)
    p = (logits - norm[..., None]).exp()
    visible = logits > -torch.inf
    q = torch.arange(call.mask.query_length, device="cuda") + call.mask.query_offset
    back = q[:, None] - torch.arange(call.mask.key_length, device="cuda")[columns]
    counted = visible & (back >= 10) & (back <= 50)
    return {
        "received": p.sum(1) / visible.sum(1),
        "received_max": p.amax(1),
        "fai": (p * counted).sum(1) / counted.sum(1),
    }


@pytest.mark.parametrize("behind", [None, WINDOW])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_real_size_is_what_the_definitions_say(behind, sinks, dtype):
    call = call_of(4_097, 4_097, behind=behind, sinks=sinks, dtype=dtype)
    arrays = statistics.compute(call, EVERYTHING, impl="triton")
    offsets = {"distance": 128.0, "waad": 10.0, "entropy": 1.0}
    for rows in (slice(0, 130), slice(2_001, 2_070), slice(4_000, 4_097)):
        truth = some_rows(call, torch.float64, rows)
        eager = some_rows(call, torch.float32, rows)
        given = some_rows(call, torch.float32, rows, arrays["lse"])
        off = float((eager["max_mass"].double() - truth["max_mass"]).abs().max())
        elsewhere = off + torch.finfo(torch.float32).eps
        for name, wanted in truth.items():
            assert_as_precise(
                arrays[name][0, :, rows],
                wanted,
                eager[name],
                *by_given(given, name),
                name=name,
                elsewhere=elsewhere * offsets.get(name, 0.0),
            )
    for columns in (slice(0, 40), slice(2_040, 2_060), slice(4_060, 4_097)):
        truth = some_columns(call, torch.float64, columns)
        twins = [
            some_columns(call, torch.float32, columns, lse)
            for lse in (None, arrays["lse"])
        ]
        for name, wanted in truth.items():
            found = arrays[name][0, :, columns]
            eager = [twin[name] for twin in twins]
            assert_as_precise(found, wanted, *eager, name=name)


@pytest.mark.parametrize("n_query", [1, 16])
def test_a_decoding_step_sees_many_keys(n_query):
    call = call_of(n_query, 65_536)
    arrays = statistics.compute(call, EVERYTHING, impl="triton")
    rows = slice(0, n_query)
    truth = some_rows(call, torch.float64, rows)
    eager = some_rows(call, torch.float32, rows)
    given = some_rows(call, torch.float32, rows, arrays["lse"])
    eps = torch.finfo(torch.float32).eps
    offsets = {"distance": 16 * eps, "waad": 10 * eps, "entropy": eps}
    for name, wanted in truth.items():
        elsewhere = offsets.get(name, 0.0)
        assert_as_precise(
            arrays[name][0],
            wanted,
            eager[name],
            *by_given(given, name),
            name=name,
            elsewhere=elsewhere,
        )
    received = arrays["received"][0].double().nan_to_num(0.0)
    seen = call.mask.queries_per_key().to("cuda")[0]
    total = (received * seen).sum(-1)
    torch.testing.assert_close(
        total, torch.full_like(total, n_query), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("given_lse", [False, True])
def test_memory_is_that_of_the_outputs_and_little_more(given_lse):
    call = call_of(32_768, 32_768)
    wanted = (*d.ROWS, *d.COLUMNS)
    lse = statistics.compute(call, [d.Lse()], impl="triton")["lse"]
    statistics.compute(call, wanted, lse=lse, impl="triton")  # programs are loaded
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    arrays = statistics.compute(
        call, wanted, lse=lse if given_lse else None, impl="triton"
    )
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    outputs = sum(array.nbytes for array in arrays.values())
    assert peak <= outputs + 64 * MEBIBYTE, f"{peak / MEBIBYTE:.0f} MiB"


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("behind", [None, WINDOW])
def test_statistics_of_a_band_do_not_wait_for_the_device(behind):
    call = call_of(1_025, 1_025, behind=behind)
    lse = statistics.compute(call, [d.Lse()], impl="triton")["lse"]
    for _ in range(2):  # compiled the first time, and found again the second
        with no_waiting():
            statistics.compute(call, EVERYTHING, lse=lse)


@pytest.mark.parametrize("behind", [None, WINDOW])
def test_runs_differ_by_rounding_only_and_not_at_all_where_that_is_asked(behind):
    call = call_of(2_049, 2_049, behind=behind)
    eps = torch.finfo(torch.float32).eps
    first, again = (
        statistics.compute(call, EVERYTHING, impl="triton") for _ in range(2)
    )
    for name, values in first.items():
        largest = float(values.nan_to_num(0.0).abs().max())
        # Sums of as many parts as there are blocks, in another order.
        allowed = 2 * math.ceil(2_049 / 64) * eps * largest
        if name in {"distance", "waad"}:
            allowed += eps * 128
        torch.testing.assert_close(
            values, again[name], atol=allowed, rtol=0, equal_nan=True
        )
    torch.use_deterministic_algorithms(True)
    try:
        first, again = (
            statistics.compute(call, EVERYTHING, impl="triton") for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for name, values in first.items():
        torch.testing.assert_close(values, again[name], atol=0, rtol=0, equal_nan=True)


def test_auto_takes_the_programs_of_the_device():
    call = call_of(257, 257)
    lse = statistics.compute(call, [d.Lse()])["lse"]
    assert statistics.choose("auto", call) == "triton"
    plain = statistics.compute(call, EVERYTHING, lse=lse)
    by_tiles = statistics.compute(call, EVERYTHING, lse=lse, impl="tiled")
    for name in ("received", "entropy", "max_mass"):
        torch.testing.assert_close(
            plain[name], by_tiles[name], atol=1e-5, rtol=1e-4, equal_nan=True
        )
