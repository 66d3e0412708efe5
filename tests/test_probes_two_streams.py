"""The gated mixture of full and local attention, against dense maps of both streams."""

import pytest
import torch
from dense_streams import dense_distance
from edited_calls import DECODERS, call_of, logits_of, weights_of
from tiny_models import VOCAB, WINDOW, tiny
from tolerance import assert_as_precise

import interp
from interp.heads import HeadGrid, HeadSet
from interp.interventions.local import LocalHeads
from interp.probes.two_streams import TwoStreams, local_attention

N = 24
FIRST, RECENT = 2, 3


def streams(name, dtype=torch.float64, **options):
    options = {"first": FIRST, "recent": RECENT} | options
    module = tiny(name)[0].to(dtype)
    if name in ("gpt_oss", "llama4"):
        module.set_experts_implementation("eager")  # the other knows no float64
    return TwoStreams(interp.load(module), **options)


def grid(own):
    return HeadGrid.of(own.model.anatomy)


def gates_of(own, value=None, dtype=torch.float64):
    shape = grid(own).n_layers, grid(own).n_kv_heads
    draw = torch.Generator().manual_seed(1)
    gates = torch.rand(shape, generator=draw, dtype=torch.float64)
    return (gates if value is None else torch.full_like(gates, value)).to(dtype)


IDS = torch.randint(3, VOCAB, (N,), generator=torch.Generator().manual_seed(0)).tolist()
LABELLED = torch.arange(N) >= N - 6


def dense(own, gates):
    sites = own.model.anatomy.at("self")
    return dense_distance(
        own.model.module,
        gates,
        IDS,
        LABELLED,
        first=own.first,
        recent=own.recent,
        gated=lambda layer: own.is_gated(sites[layer]),
    )


@pytest.mark.parametrize(
    ("name", "recent"),
    [
        *(
            (name, RECENT)
            for name in ("llama", "gpt_oss", "gemma2", "qwen3", "mistral")
        ),
        *((name, WINDOW + 1) for name in ("llama", "gpt_oss", "gemma2")),
    ],
)
def test_distance_and_slope_are_those_of_dense_streams(name, recent):
    own = streams(name, recent=recent)
    gates = gates_of(own).requires_grad_()
    truth = dense(own, gates)
    (slope,) = torch.autograd.grad(truth, gates)

    distance, ours = own.slope(gates, IDS, LABELLED)

    assert_as_precise(distance, truth.detach(), name="distance")
    assert_as_precise(ours, slope, name="slope")
    assert slope.abs().max() > 0


@pytest.mark.parametrize("name", DECODERS)
def test_the_mixed_stream_is_the_full_one_where_all_gates_are_open(name):
    own = streams(name, torch.float32)
    distance, slope = own.slope(gates_of(own, 1.0, torch.float32), IDS, LABELLED)

    assert distance == 0
    assert not slope.any()


@pytest.mark.parametrize("recent", [RECENT, WINDOW + 1])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "gemma2", "llama4"])
def test_closed_gates_are_local_heads(name, recent):
    own = streams(name, recent=recent)
    module, tokens = own.model.module, torch.tensor([IDS])
    every = HeadSet.of(grid(own), grid(own))
    with torch.no_grad():
        full = module.model(tokens).last_hidden_state
        with LocalHeads(every, recent=recent, first=FIRST)(own.model):
            local = module.model(tokens).last_hidden_state
    wanted = (full - local)[0, LABELLED].square().mean()

    distance, _ = own.slope(gates_of(own, 0.0), IDS, LABELLED)

    assert_as_precise(distance, wanted)


def test_the_slope_is_that_of_finite_differences():
    own = streams("llama")
    gates, way = gates_of(own), torch.randn(grid(own).n_layers, 2).double()

    def along(step):
        ends = [own.slope(gates + s * way, IDS, LABELLED)[0] for s in (step, -step)]
        return (ends[0] - ends[1]) / (2 * step)

    _, slope = own.slope(gates, IDS, LABELLED)
    ours = (slope * way).sum().float()
    assert_as_precise(ours, along(1e-4), along(2e-4).float())


def test_blocks_that_run_again_give_the_same_slope():
    once, twice = streams("gpt_oss"), streams("gpt_oss", recompute=True)
    gates = gates_of(once)
    for ours, wanted in zip(
        twice.slope(gates, IDS, LABELLED),
        once.slope(gates, IDS, LABELLED),
        strict=True,
    ):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_model_is_left_as_it_was(untouched, recompute):
    own = streams("llama", recompute=recompute)
    with untouched(own.model.module):
        own.slope(gates_of(own), IDS, LABELLED)
    with untouched(own.model.module), torch.no_grad():
        own.slope(gates_of(own), IDS, LABELLED)
    with untouched(own.model.module), pytest.raises(IndexError):
        own.slope(gates_of(own), [*IDS, 10 * VOCAB], LABELLED)


def test_other_streams_are_no_matter_of_gradients_of_the_model():
    own = streams("llama")
    own.slope(gates_of(own), IDS, LABELLED)
    assert all(
        p.requires_grad and p.grad is None for p in own.model.module.parameters()
    )


def test_a_layer_whose_window_is_recent_has_nothing_to_choose():
    sites = streams("gpt_oss").model.anatomy.at("self")
    assert [streams("gpt_oss", recent=4).is_gated(site) for site in sites] == [1, 1]
    assert [streams("gpt_oss", recent=5).is_gated(site) for site in sites] == [0, 1]
    chunked = streams("llama4", recent=5)
    assert [chunked.is_gated(site) for site in chunked.model.anatomy.at("self")] == [
        0,
        1,
    ]


@pytest.mark.parametrize("rows", [1, 7, 128])
@pytest.mark.parametrize(("first", "recent"), [(0, 1), (4, 5), (2, 300)])
@pytest.mark.parametrize("name", ["plain", "window", "learned sinks", "softcap"])
def test_local_attention_sees_what_is_first_or_recent(
    name, first, recent, rows, monkeypatch
):
    monkeypatch.setattr("interp.probes.two_streams.ROWS", rows)
    call = call_of(name)
    logits, visible, place = logits_of(call)
    n = call.mask.query_length
    near = torch.arange(n)[:, None] - torch.arange(n) < recent
    seen = visible & (near | (place < first)[:, None, None, :])
    value = call.value.repeat_interleave(call.group_size, 1)

    ours = local_attention(call, first, recent)

    assert_as_precise(ours, weights_of(call, logits, seen) @ value)
