"""Every statistic of every implementation against its definition in float64."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import matrix_units
import pytest
import torch
from attention_cases import Case, cases, make
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_as_precise, assert_same_index
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels import fused, row_blocks, statistics, tiled, tiles, weighted

PARAMETERS = {"clip": 10, "first": 4, "window": 6, "near": 3, "far": 12, "size": 20}
PARAMETERS |= {"k": 9, "last": 5}
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
    d.TopKeys(k=9),
    d.Received(),
    d.ReceivedLate(last=5),
    d.ReceivedMax(),
    d.FutureInfluence(near=3, far=12),
    d.Norms(),
    d.BlockMap(size=20),
    d.Pattern(),
)
ROUNDINGS = ({"early": False}, {"early": True}, {"rounded": 1}, {"rounded": 2})
"""Dense computations that differ only in how their logits are rounded."""


def roundings(case: Case) -> list[dict]:
    """Those of `ROUNDINGS`, and of the matrix units where they are."""
    half = case.call.query.dtype in (torch.bfloat16, torch.float16)
    return [*ROUNDINGS, *([{"on_units": True}] if half and matrix_units.THERE else [])]


INDICES = {"max_key", "top_key"}
"""Arrays of key indices: rounding decides among weights that are nearly equal."""

TILES = ((128, 512), (16, 24), (7, 5))


def targets_of(case: Case) -> Tensor:
    """Three target keys of each query, some of them none, in the batch's frame."""
    mask = case.call.mask
    draw = torch.Generator().manual_seed(1)
    shape = (case.call.n_batch, mask.query_length, 3)
    return torch.randint(-3, mask.key_length, shape, generator=draw).clamp(min=-1)


def wanted_of(case: Case, size: int = PARAMETERS["size"]) -> tuple[d.Statistic, ...]:
    edges = d.Edges((("previous", 1), ("three", targets_of(case))))
    plain = [s for s in WANTED if not isinstance(s, d.BlockMap)]
    return (*plain, d.BlockMap(size), edges)


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


def norms_of(
    case: Case, sample: int, dtype: torch.dtype, visible: Tensor
) -> dict[str, Tensor]:
    """Root of the sum of squares, head by head."""
    keys, norms = case.spans()[sample][1], {}
    for name in ("key", "value"):
        vectors = getattr(case.call, name)[sample, :, keys].to(dtype)
        norm = vectors.square().sum(-1).sqrt()
        norm = norm.repeat_interleave(case.call.group_size, 0)
        norms[f"{name}_norm"] = norm.masked_fill(~visible.any(1), torch.nan)
    return norms


def definitions(
    case: Case, dtype: torch.dtype, size: int, **how
) -> list[dict[str, Tensor]]:
    """The arrays of each sample by definition."""
    sink = case.call.score.sink_logits
    arrays = []
    for sample, dense in enumerate(case.dense(dtype, **how)):
        if dense.p.numel() == 0:
            arrays.append({})
            continue
        parameters = PARAMETERS | {"size": size}
        own = dense.arrays(**parameters, edges=edges_of(case, sample))
        own |= norms_of(case, sample, dtype, dense.visible)
        sinks = None if sink is None else sink.to(dtype)
        arrays.append(own | {"learned_sink": dense.learned_sink(sinks)})
    return arrays


def check(
    case: Case,
    ours: dict[str, Tensor],
    lse: Tensor | None = None,
    size: int = PARAMETERS["size"],
) -> None:
    """Our arrays against the definition.

    `lse` is what the kernel took for granted. A twin of such a kernel gets the same
    one and computes in base 2 as well: how far `s log2(e) - lse log2(e)` is rounded off
    depends on the size of lse, not on who subtracts.
    """
    precision = case.call.dtype
    truths = definitions(case, torch.float64, size)
    twins = [definitions(case, precision, size, **how) for how in roundings(case)]
    if lse is not None:
        base2 = {"unit": math.log2(math.e), "lse": lse}
        twins += [
            definitions(case, precision, size, **base2, **how)
            for how in roundings(case)
        ]
    maps = case.dense(torch.float64)
    for sample, (queries, keys) in enumerate(case.spans()):
        truth = truths[sample]
        if queries.start == queries.stop or keys.start == keys.stop:
            for name, whole in ours.items():
                empty = -1 if name in INDICES else torch.nan
                torch.testing.assert_close(
                    whole[sample], torch.full_like(whole[sample], empty), equal_nan=True
                )
            continue
        assert set(ours) == {*truth, *INDICES}
        worst = max(_error(twin[sample], truth, "pattern") for twin in twins)
        for name, whole in ours.items():
            own, rest = _inside(name, whole[sample], queries, keys, truth)
            assert (rest == -1).all() if name in INDICES else rest.isnan().all()
            if name in INDICES:
                own = torch.where(own >= 0, own - keys.start, own)
                precise = 4 * worst + 4 * torch.finfo(precision).eps
                same = assert_same_index if name == "max_key" else _same_ranks
                same(own, maps[sample].p, maps[sample].visible, precise)
            else:
                eager = [twin[sample][name] for twin in twins]
                # Few weights are looked at, or values near 0 are made of large ones.
                elsewhere = worst + torch.finfo(precision).eps
                elsewhere *= name in ("edges", "entropy")
                assert_as_precise(
                    own, truth[name], *eager, name=name, elsewhere=elsewhere
                )


def _same_ranks(ours: Tensor, p: Tensor, visible: Tensor, precise: float) -> None:
    """Each rank's key has the largest weight of those that no earlier rank has."""
    for key in ours.unbind(-1):
        # Below all weights is what cannot be chosen.
        assert_same_index(key, p.masked_fill(~visible, -9.0), visible, precise)
        visible = visible.scatter(-1, key.clamp(min=0).long()[..., None], False)


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
        return weighted.attend(case.call, wanted)[2], None
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


@contextmanager
def small_tiles(rows: int, keys: int) -> Iterator[None]:
    """Tiles and blocks of another size, so that small calls cross many of them."""
    few = {"cpu": rows * keys * 2}
    by_tile = {"ROWS": rows, "KEYS": keys, "ELEMENTS": few}
    by_row = {"ROWS": rows, "NEAR_CORE": 1, "WORTH_A_WORKER": 1}
    with (
        mock.patch.multiple(tiled, **by_tile),
        mock.patch.multiple(row_blocks, **by_row),
        mock.patch.object(tiles, "NEAR", keys),
    ):
        yield
