"""Laws of the statistics, small examples by hand, and what is refused."""

import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
from attention_cases import MASKS, Case, make
from test_kernels_statistics import WANTED, compute, small_tiles, wanted_of
from torch import Tensor
from triton_cases import TRITON, run

from interp.kernels import accumulators, statistics, weighted
from interp.kernels import definitions as d
from interp.kernels.edits import Block, Edit
from interp.kernels.errors import KernelUnavailableError, ShapeError
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule

IMPLEMENTATIONS = (TRITON, "tiled", "weighted", "reference")


def call_of(scores: list[list[float]], mask: MaskRule | None = None) -> AttentionCall:
    """One head whose scores are given: query i is row i, key j is the unit vector j."""
    query = torch.tensor(scores)[None, None]
    key = torch.eye(query.shape[3])[None, None]
    rule = mask or MaskRule.causal(query.shape[2])
    return AttentionCall(query, key, key.clone(), ScoreRule(scale=1.0), rule)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_two_tokens_by_hand(impl):
    # Row 0 sees itself; row 1 gives 1/4 to key 0 and 3/4 to itself.
    call = call_of([[0.0, 9.0], [0.0, math.log(3)]])
    edges = d.Edges((("previous", 1),))
    wanted = (*WANTED[:-2], d.BlockMap(2), edges)
    arrays = run(call, wanted, impl)
    row = {name: values[0, 0].tolist() for name, values in arrays.items()}
    half = pytest.approx
    assert row["lse"] == half([0.0, math.log(4)])
    entropy = -(math.log(1 / 4) / 4 + math.log(3 / 4) * 3 / 4)
    assert row["entropy"] == half([0.0, entropy], abs=1e-6)
    assert row["distance"] == half([0.0, 1 / 4], abs=1e-6)
    assert row["waad"] == half([0.0, 1 / 4], abs=1e-6)
    assert row["sink_mass"] == half([1.0, 1.0])
    assert row["first_mass"] == half([1.0, 1 / 4])
    assert row["learned_sink"] == [0.0, 0.0]
    assert row["max_mass"] == half([1.0, 3 / 4])
    assert row["max_key"] == [0, 1]
    none = [math.nan] * 8
    assert row["top_mass"][0] == half([1.0, *none], nan_ok=True)
    assert row["top_mass"][1] == half([3 / 4, 1 / 4, *none[1:]], nan_ok=True)
    assert row["top_key"] == [[0] + [-1] * 8, [1, 0] + [-1] * 7]
    assert row["received"] == half([5 / 8, 3 / 4])
    assert row["received_late"] == half([5 / 8, 3 / 4])
    assert row["received_max"] == half([1.0, 3 / 4])
    assert row["key_norm"] == row["value_norm"] == [1.0, 1.0]
    assert row["block_mean"] == [half([2 / 3])]
    assert row["block_max"] == [half([1.0])]
    assert math.isnan(row["edges"][0][0])
    assert row["edges"][1] == half([1 / 4])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("mask", [MaskRule.causal(4), MaskRule.causal(4, window=2)])
def test_the_last_queries_alone_decide_what_is_received_late(impl, mask):
    # Rows are uniform: of 3 and 4 keys, or of 2 each where there is a window.
    late = run(call_of([[0.0] * 4] * 4, mask), [d.ReceivedLate(last=2)], impl)
    whole = [(1 / 3 + 1 / 4) / 2] * 3 + [1 / 4]
    wanted = whole if mask.behind is None else [math.nan, 1 / 2, 1 / 2, 1 / 2]
    found = late["received_late"][0, 0].tolist()
    assert found == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_received_late_of_all_queries_is_received(impl, mask):
    case = make(33, mask=mask, padding="left", n_batch=2, sinks=True)
    arrays = run(case.call, [d.Received(), d.ReceivedLate(last=33)], impl)
    torch.testing.assert_close(
        arrays["received_late"], arrays["received"], equal_nan=True
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_learned_sink_takes_its_share_of_every_row(impl):
    call = call_of([[0.0, 0.0], [0.0, 0.0]])
    call = replace(call, score=ScoreRule(1.0, sink_logits=torch.zeros(1)))
    wanted = (d.LearnedSink(), d.Pattern(), d.Lse())
    arrays = run(call, wanted, impl)
    share, p = arrays["learned_sink"][0, 0], arrays["pattern"][0, 0]
    torch.testing.assert_close(share, torch.tensor([1 / 2, 1 / 3]))
    torch.testing.assert_close(p.sum(-1) + share, torch.ones(2))
    torch.testing.assert_close(arrays["lse"][0, 0], torch.tensor([0.0, math.log(2)]))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_row_that_sees_one_key_has_no_entropy_and_no_distance(impl):
    arrays = run(make(1, values="huge").call, WANTED, impl)
    for name in ("entropy", "distance", "waad"):
        assert (arrays[name] == 0).all()
    assert (arrays["max_mass"] == 1).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_scores_beyond_any_stand_in_for_infinity_are_computed(impl):
    scores = [[-3e4, 0.0, 0.0], [-5e4, -5e4, 0.0], [2e4, -2e4, 2e4 - 1]]
    wanted = (d.Lse(), d.Pattern(), d.Entropy())
    arrays = run(call_of(scores), wanted, impl)
    lse = torch.tensor([-3e4, -5e4 + math.log(2), 2e4 + math.log1p(math.exp(-1))])
    torch.testing.assert_close(arrays["lse"][0, 0], lse)
    p = arrays["pattern"][0, 0]
    torch.testing.assert_close(p.sum(-1), torch.ones(3), atol=5e-3, rtol=0)
    assert (p[0] == torch.tensor([1.0, 0.0, 0.0])).all()
    assert p[2, 1] == 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_rows_sum_to_one(impl, mask):
    case = make(40, mask=mask, n_batch=2)
    p = run(case.call, [d.Pattern()], impl)["pattern"]
    sums = p.sum(-1)
    sees = case.visible.any(-1)
    torch.testing.assert_close(sums[sees], torch.ones_like(sums[sees]))
    assert sums[~sees].isnan().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_heads_do_not_know_of_each_other(impl):
    case = make(30, heads=(6, 3), sinks=True, bias=True, mask="dense")
    call, order = case.call, torch.tensor([4, 5, 0, 1, 2, 3])
    groups = torch.tensor([2, 0, 1])
    assert call.score.sink_logits is not None
    assert call.score.position_bias is not None
    assert call.mask.dense is not None
    score = replace(
        call.score,
        sink_logits=call.score.sink_logits[order],
        position_bias=call.score.position_bias[:, order],
    )
    mask = replace(call.mask, dense=call.mask.dense[:, order])
    other = AttentionCall(
        call.query[:, order], call.key[:, groups], call.value[:, groups], score, mask
    )
    found = run(other, WANTED, impl)
    wanted = run(call, WANTED, impl)
    same(found, {name: values[:, order] for name, values in wanted.items()})


@pytest.mark.parametrize("impl", ["tiled", "weighted"])
@pytest.mark.parametrize("mask", ["causal", "packed", "dense"])
def test_stripes_of_rows_merge_to_what_one_pass_gives(impl, mask):
    case = make(127, mask=mask, n_batch=2, sinks=True)
    one = compute(case, impl)[0]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with small_tiles(16, 40):
            striped = compute(case, impl)[0]
    finally:
        torch.set_num_threads(before)
    same(striped, one)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_padded_batch_equals_each_text_alone(impl, padding):
    case = make(41, padding=padding, n_batch=2, sinks=True, values="huge")
    together = run(case.call, WANTED, impl)
    for sample, (tokens, _) in enumerate(case.spans()):
        n = tokens.stop - tokens.start
        call = AttentionCall(
            case.call.query[sample, None, :, tokens],
            case.call.key[sample, None, :, tokens],
            case.call.value[sample, None, :, tokens],
            case.call.score,
            MaskRule.causal(n),
        )
        alone = run(call, WANTED, impl)
        specs = {array.name: array for s in WANTED for array in s.arrays}
        for name, wanted in alone.items():
            own, dims = together[name][sample], specs[name].dims[1:]
            for axis, dim in enumerate(dims):
                if dim in {"query", "key"}:
                    own = own.narrow(axis, tokens.start, n)
                elif dim.endswith("block"):
                    own = own.narrow(axis, 0, wanted.shape[axis + 1])
            if specs[name].integer:
                own = torch.where(own >= 0, own - tokens.start, own)
            torch.testing.assert_close(own, wanted[0], equal_nan=True)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("tile", [(128, 512), (16, 24)])
def test_of_equal_weights_the_first_keys_are_the_top_ones(impl, tile):
    # Whole vectors of a processor: at odd ends `exp2` may round in another way.
    case = make(72, values="all equal")
    with small_tiles(*tile):
        arrays = run(case.call, [d.TopKeys(64)], impl)
    order = torch.arange(64).expand(72, -1)
    seen = torch.arange(72)[:, None]
    wanted = order.masked_fill(order > seen, -1)
    assert (arrays["top_key"] == wanted).all()
    mass = (1 / (seen + 1.0)).masked_fill(order > seen, torch.nan)
    torch.testing.assert_close(
        arrays["top_mass"], mass.expand(1, 4, -1, -1), equal_nan=True
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("keys", [512, 2])
def test_of_equal_weights_across_the_last_rank_the_first_key_has_it(impl, keys):
    scores = [[1.0, 0.0, 1.0, 2.0, 1.0, 2.0]] * 6
    call = call_of(scores, MaskRule.full(6, 6))
    with small_tiles(2, keys):
        top = run(call, [d.TopKeys(3)], impl)["top_key"]
    assert top[0, 0].tolist() == [[3, 5, 0]] * 6


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_visible_key_without_weight_is_still_a_key(impl):
    # In the last row key 0 is out of sight; of 1 and 2 nothing is left by rounding.
    scores = [[0.0, 0.0, 0.0, 0.0]] * 3 + [[0.0, -1e3, -2e3, 0.0]]
    call = call_of(scores, MaskRule.causal(4, window=3))
    arrays = run(call, [d.TopKeys(4)], impl)
    assert arrays["top_key"][0, 0, 3].tolist() == [3, 1, 2, -1]
    mass = torch.tensor([1.0, 0.0, 0.0, torch.nan])
    torch.testing.assert_close(arrays["top_mass"][0, 0, 3], mass, equal_nan=True)


@pytest.mark.parametrize("mask", ["causal", "window", "local", "chunk"])
def test_tiles_without_a_visible_pair_are_never_computed(mask, monkeypatch):
    case = make(127, mask=mask, heads=(1, 1))
    times = torch.zeros(127, 127)
    boxes = []

    def look(self: accumulators.Entropy, tile: accumulators.Tile) -> None:
        times[tile.rows, tile.columns] += 1
        boxes.append((tile.rows, tile.columns))

    monkeypatch.setattr(accumulators.Entropy, "update", look)
    with small_tiles(16, 9):
        statistics.compute(case.call, [d.Entropy()], impl="tiled")
    visible = case.visible[0, 0]
    assert all(visible[box].any() for box in boxes)
    assert (times[visible] == 1).all()
    assert times.max() == 1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_statistics_without_edges_have_an_empty_edge_axis(impl):
    arrays = run(make(7).call, [d.Edges(())], impl)
    assert arrays["edges"].shape == (1, 4, 7, 0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nothing_wanted_gives_nothing(impl):
    assert run(make(7).call, [], impl) == {}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_target_out_of_sight_has_no_mass_and_a_query_without_target_has_nan(impl):
    rows = torch.tensor([[-1, -1], [0, 2], [1, -1]])
    edges = d.Edges((("some", rows),))
    mass = run(call_of([[0.0] * 3] * 3), [edges], impl)["edges"][0, 0, :, 0]
    wanted = torch.tensor([math.nan, 1 / 2, 1 / 3])
    torch.testing.assert_close(mass, wanted, equal_nan=True)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_cross_attention_has_no_distances(impl):
    case = make(7, 9, mask="full")
    call = replace(case.call, comparable=False)
    plain = [s for s in WANTED if not s.positional]
    assert "entropy" in run(call, plain, impl)
    with pytest.raises(ShapeError, match="distance"):
        run(call, WANTED, impl)


def test_what_does_not_fit_is_refused_with_its_shape(monkeypatch):
    # Users have no checked annotations: the package's own words must come.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call = make(7, 9).call
    with pytest.raises(ShapeError, match=r"\(1, 4, 7\); got \(1, 4, 9\)"):
        statistics.compute(call, [d.Entropy()], lse=torch.zeros(1, 4, 9))
    with pytest.raises(ShapeError, match="4 axes"):
        replace(call, query=call.query[0])
    with pytest.raises(ShapeError, match=r"\(1, 3, 9, 8\)"):
        replace(call, key=call.key[:, :1].expand(-1, 3, -1, -1))
    with pytest.raises(ShapeError, match="7 queries and 8 keys"):
        replace(call, mask=MaskRule(7, 8))
    edges = d.Edges((("odd", torch.zeros(6, 1).long()),))
    with pytest.raises(ShapeError, match=r"'odd'.*7 queries"):
        statistics.compute(call, [edges], impl="tiled")
    many = d.Edges((("many", torch.zeros(7, 65).long()),))
    with pytest.raises(ShapeError, match="at most 64"):
        statistics.compute(call, [many])


@pytest.mark.parametrize(
    "make_one",
    [
        lambda: d.SinkMass(first=0),
        lambda: d.ClippedDistance(clip=0),
        lambda: d.LocalMass(window=-1),
        lambda: d.FutureInfluence(near=9, far=3),
        lambda: d.BlockMap(size=0),
        lambda: d.TopKeys(k=0),
        lambda: d.TopKeys(k=65),
        lambda: d.ReceivedLate(last=0),
    ],
)
def test_a_parameter_without_meaning_is_refused(make_one):
    with pytest.raises(ShapeError, match="at least"):
        make_one()


def test_two_statistics_of_one_name_are_refused():
    with pytest.raises(ShapeError, match="sink_mass"):
        d.merged([d.SinkMass(4), d.SinkMass(8)])
    assert d.merged([d.SinkMass(4), d.Lse(), d.SinkMass(4)]) == (d.SinkMass(4), d.Lse())


def test_an_unknown_implementation_names_those_that_there_are():
    with pytest.raises(KernelUnavailableError, match="auto, triton, tiled, weighted"):
        statistics.compute(make(7).call, [d.Lse()], impl="magic")


def test_an_edit_that_changes_nothing_changes_nothing():
    case = make(127, mask="packed", padding="holes", n_batch=2, sinks=True)
    wanted = wanted_of(case)
    plain = weighted.attend(case.call, wanted)
    edited = weighted.attend(case.call, wanted, [Edit(), Edit()])
    torch.testing.assert_close(edited[0], plain[0])
    assert torch.equal(edited[1], plain[1])
    same(edited[2], plain[2])


def test_an_edit_is_told_where_it_is():
    case: Case = make(70, 90, mask="dense", n_batch=2, padding="left")
    seen = torch.zeros_like(case.visible)

    class Halve(Edit):
        def change_weights(self, weights: Tensor, block: Block) -> None:
            offsets = case.call.mask.query_offset, case.call.mask.key_offset
            rows, columns = block.query - offsets[0], block.key - offsets[1]
            at = case.visible[block.sample, block.heads][:, rows][:, :, columns]
            assert torch.equal(block.visible.expand_as(at), at)
            area = seen[block.sample, block.heads]
            area[:, rows[:, None], columns] = True
            weights.mul_(0.5)

    before = weighted.attend(case.call)
    after = weighted.attend(case.call, [d.Pattern(), d.Lse()], [Halve()])
    torch.testing.assert_close(after[0], before[0] / 2)
    assert torch.equal(after[1], before[1])
    assert seen[case.visible].all()
    p = after[2]["pattern"].nan_to_num(0.0).sum(-1)
    torch.testing.assert_close(
        p[case.visible.any(-1)], torch.tensor(0.5).expand_as(p[case.visible.any(-1)])
    )
