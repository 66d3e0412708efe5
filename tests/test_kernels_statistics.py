"""Every statistic of every implementation against its definition in float64."""

import math
from unittest import mock

import pytest
import torch
from attention_cases import Case, cases, make
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_as_precise, assert_same_index
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels import fused, statistics, tiled, weighted

PARAMETERS = {"clip": 10, "first": 4, "window": 6, "near": 3, "far": 12, "size": 20}
WANTED = (
    d.Lse(),
    d.Entropy(),
    d.Distance(),
    d.ClippedDistance(clip=10),
    d.SinkMass(first=4),
    d.FirstMass(),
    d.LearnedSink(),
    d.LocalMass(window=6),
    d.MaxMass(),
    d.Received(),
    d.ReceivedMax(),
    d.FutureInfluence(near=3, far=12),
    d.BlockMap(size=20),
    d.Pattern(),
)
ROUNDINGS = ({"early": False}, {"early": True}, {"rounded": 1}, {"rounded": 2})
"""Dense computations that differ only in how their logits are rounded."""

TILES = ((128, 512), (16, 24), (7, 5))


def targets_of(case: Case) -> Tensor:
    """Three target keys of each query, some of them none, in the batch's frame."""
    mask = case.call.mask
    draw = torch.Generator().manual_seed(1)
    shape = (case.call.n_batch, mask.query_length, 3)
    return torch.randint(-3, mask.key_length, shape, generator=draw).clamp(min=-1)


def wanted_of(case: Case) -> tuple[d.Statistic, ...]:
    edges = d.Edges((("previous", 1), ("three", targets_of(case))))
    return (*WANTED, edges)


def edges_of(case: Case, sample: int) -> list[Tensor]:
    """The same targets for one sample, counted from its first key."""
    mask = case.call.mask
    queries, keys = case.spans()[sample]
    query = torch.arange(mask.query_length)[queries, None]
    previous = query + mask.query_offset - mask.key_offset - 1
    edges = []
    for rows in (previous, targets_of(case)[sample, queries]):
        none = (rows < keys.start) | (rows >= keys.stop)
        edges.append((rows - keys.start).masked_fill(none, -1))
    return edges


def definitions(case: Case, dtype: torch.dtype, **how) -> list[dict[str, Tensor]]:
    """The arrays of each sample by definition."""
    sink = case.call.score.sink_logits
    arrays = []
    for sample, dense in enumerate(case.dense(dtype, **how)):
        if dense.p.numel() == 0:
            arrays.append({})
            continue
        own = dense.arrays(**PARAMETERS, edges=edges_of(case, sample))
        sinks = None if sink is None else sink.to(dtype)
        arrays.append(own | {"learned_sink": dense.learned_sink(sinks)})
    return arrays


def check(case: Case, ours: dict[str, Tensor], lse: Tensor | None = None) -> None:
    """Our arrays against the definition.

    `lse` is what the kernel took for granted. A twin of such a kernel gets the same
    one and computes in base 2 as well: how far `s log2(e) - lse log2(e)` is rounded off
    depends on the size of lse, not on who subtracts.
    """
    precision = case.call.dtype
    truths = definitions(case, torch.float64)
    twins = [definitions(case, precision, **how) for how in ROUNDINGS]
    if lse is not None:
        base2 = {"unit": math.log2(math.e), "lse": lse}
        twins += [definitions(case, precision, **base2, **how) for how in ROUNDINGS]
    maps = case.dense(torch.float64)
    for sample, (queries, keys) in enumerate(case.spans()):
        truth = truths[sample]
        if queries.start == queries.stop or keys.start == keys.stop:
            for name, whole in ours.items():
                empty = -1 if name == "max_key" else torch.nan
                torch.testing.assert_close(
                    whole[sample], torch.full_like(whole[sample], empty), equal_nan=True
                )
            continue
        assert set(ours) == {*truth, "max_key"}
        worst = max(_error(twin[sample], truth, "pattern") for twin in twins)
        for name, whole in ours.items():
            own, rest = _inside(name, whole[sample], queries, keys, truth)
            assert (rest == -1).all() if name == "max_key" else rest.isnan().all()
            if name == "max_key":
                own = torch.where(own >= 0, own - keys.start, own)
                precise = 4 * worst + 4 * torch.finfo(precision).eps
                assert_same_index(own, maps[sample].p, maps[sample].visible, precise)
            else:
                eager = [twin[sample][name] for twin in twins]
                # Few weights are looked at, or values near 0 are made of large ones.
                elsewhere = worst + torch.finfo(precision).eps
                elsewhere = elsewhere if name in {"edges", "entropy"} else 0.0
                assert_as_precise(
                    own, truth[name], *eager, name=name, elsewhere=elsewhere
                )


def _error(twin: dict[str, Tensor], truth: dict[str, Tensor], name: str) -> float:
    off = (twin[name].double() - truth[name]).abs().nan_to_num(0.0)
    return float(off.max()) if off.numel() else 0.0


def _inside(
    name: str, whole: Tensor, queries: slice, keys: slice, truth: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The part of an array that belongs to real tokens, and all the rest."""
    specs = {array.name: array for s in wanted_of(make()) for array in s.arrays}
    place: list[slice] = [slice(None)]
    for axis, dim in enumerate(specs[name].dims[2:], start=1):
        if dim.endswith("_block"):
            place.append(slice(0, truth[name].shape[axis]))
        else:
            place.append({"query": queries, "key": keys}.get(dim, slice(None)))
    outside = torch.ones(whole.shape, dtype=torch.bool)
    outside[tuple(place)] = False
    return whole[tuple(place)], whole[outside]


def compute(case: Case, impl: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """The arrays of one implementation, and the log-sum-exp that it was handed."""
    wanted = wanted_of(case)
    if impl == "tiled, given lse":
        done = fused.attend(case.call)
        if done is None:
            done = weighted.attend(case.call)[:2]
        return statistics.compute(case.call, wanted, lse=done[1], impl="tiled"), done[1]
    if impl == "weighted.attend":
        return weighted.attend(case.call, None, wanted)[2], None
    arrays = statistics.compute(case.call, wanted, impl=impl)
    return arrays, arrays["lse"] if impl == "tiled" else None


IMPLEMENTATIONS = ("tiled", "tiled, given lse", "weighted.attend", "reference")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=25)
@given(how=cases(), tile=st.sampled_from(TILES))
def test_statistics_are_what_their_definitions_say(impl, how, tile):
    case = make(**how)
    with small_tiles(*tile):
        check(case, *compute(case, impl))


def small_tiles(rows: int, keys: int):
    """Tiles of another size, so that small calls cross many of them."""
    few = {"cpu": rows * keys * 2}
    return mock.patch.multiple(tiled, ROWS=rows, KEYS=keys, ELEMENTS=few)
