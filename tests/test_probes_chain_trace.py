"""The rhythm of a response against dense float64 definitions from eager maps."""

from dataclasses import replace
from functools import cache

import dense_rhythm as dense
import numpy as np
import pytest
import torch
from test_families import run
from tiny_models import VOCAB, WINDOW, tiny, tiny_tokenizer
from tolerance import assert_as_precise

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.interventions import AblateHeads
from interp.kernels.definitions import COLUMNS, ROWS, FutureInfluence
from interp.probes.chain_trace import trace_chain
from interp.probes.horizons import END
from interp.probes.reach import GLOBAL, LOCAL, Reach
from interp.probes.receivers import Receivers
from interp.probes.rhythm import Rhythm
from interp.tasks import Item

FAMILIES = ("llama", "gemma3", "gpt_oss")
"""Grouped heads, sliding windows, learned sinks."""
FIRST, N_TOKENS = 7, 30
IDS = torch.randint(3, VOCAB, (N_TOKENS,), generator=torch.Generator().manual_seed(1))
ITEM = Item("chain", tuple(IDS.tolist()), (FIRST, N_TOKENS))
HORIZONS = ((2, 4), (3, 9), (0, None), (4, None))
OPTIONS = Rhythm(
    horizons=HORIZONS,
    clip=6,
    receivers=Receivers(near=4, least_queries=3),
    receiver_share=0.3,
)


@cache
def model(name):
    return interp.load(tiny(name)[0], tokenizer=tiny_tokenizer())


@cache
def traced(name):
    return trace_chain(model(name), ITEM, OPTIONS)


@cache
def outputs(name, dtype, moved=0):
    return run(name, {"input_ids": IDS[None]}, dtype, moved)


@cache
def maps(name, moved=None):
    """Dense maps; in float64, or as float32 makes them with its parameters moved."""
    dtype = torch.float64 if moved is None else torch.float32
    layers = outputs(name, dtype, moved or 0).attentions
    return torch.cat(list(layers)).double().numpy()


def close(ours, name, definition):
    """As close to the definition as dense float32 is."""
    truth, *twins = (
        torch.from_numpy(np.asarray(definition(maps(name, moved))))
        for moved in (None, 0, 1, 2)
    )
    near = [twin.float() for twin in twins]
    assert_as_precise(torch.from_numpy(np.array(ours)).float(), truth, *near)


def chosen(found, side):
    return (found["reach"].sel(sink="with") == side).values


@pytest.mark.parametrize("name", FAMILIES)
def test_spans_are_those_of_the_eager_maps(name):
    found = OPTIONS.read(traced(name))

    for sink, without in (("with", False), ("without", True)):
        ours = found["span"].sel(sink=sink).values
        close(ours, name, lambda p, w=without: dense.span(p, FIRST, without_first=w))
    local, distant = dense.sides(dense.span(maps(name), FIRST), 0.3)
    np.testing.assert_array_equal(chosen(found, LOCAL), local)
    np.testing.assert_array_equal(chosen(found, GLOBAL), distant)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_curves_are_those_of_the_mean_maps(name):
    found = OPTIONS.read(traced(name))
    local, distant = chosen(found, LOCAL), chosen(found, GLOBAL)

    close(found["waad"], name, lambda p: dense.waad(p, local, FIRST, 6))
    receivers = found["is_receiver"].values
    assert receivers.any()
    for n, (near, far) in enumerate(HORIZONS):
        for curve, heads in (("fai", distant), ("receiver_fai", receivers)):
            ours = found[curve].isel(horizon=n)
            horizon = (near, far)
            close(ours, name, lambda p, h=heads, r=horizon: dense.fai(p, h, FIRST, *r))


@pytest.mark.parametrize("name", FAMILIES)
def test_receivers_are_told_by_the_kurtosis_of_the_columns(name):
    found = OPTIONS.read(traced(name))
    back = np.arange(N_TOKENS)[:, None] - np.arange(N_TOKENS)
    windows = traced(name)["self"]["window"].fillna(np.inf).values
    visible = (back >= 0) & (back < windows[:, None, None])

    close(found["kurtosis"], name, lambda p: dense.kurtosis(p, FIRST, 4, 3, visible))


@pytest.mark.parametrize("name", [*FAMILIES, "gemma2", "gpt2"])
def test_entropy_is_that_of_the_row_before(name):
    said = trace_chain(model(name), ITEM)["predictions"]
    rows, tokens = slice(FIRST - 1, N_TOKENS - 1), IDS[FIRST:]

    def definition(moved):
        dtype = torch.float64 if moved is None else torch.float32
        logits = outputs(name, dtype, moved or 0).logits[0, rows].double()
        log_p = logits.log_softmax(-1)
        nll = -log_p.gather(1, tokens[:, None])[:, 0]
        return {"entropy": -(log_p.exp() * log_p).sum(-1), "nll": nll}

    truth, *twins = (definition(moved) for moved in (None, 0, 1, 2))
    for what, values in truth.items():
        ours = torch.from_numpy(said[what].values).float()
        assert_as_precise(ours, values, *(twin[what].float() for twin in twins))


def test_a_window_hides_what_the_definition_counts_as_nothing():
    # In a sliding layer no query of the horizon 9 to 20 sees the key.
    far = (9, 20)
    assert far[0] > WINDOW
    options = replace(OPTIONS, horizons=(far,), reach=Reach(share=0.5, layers=(0,)))
    found = options.read(trace_chain(model("gemma3"), ITEM, options), 4)
    known = found["fai"].notnull().values[0]

    assert known.sum() == N_TOKENS - FIRST - far[0]
    assert (found["fai"].values[0, known] == 0).all()


def test_only_the_layers_that_are_looked_at_are_recorded():
    options = replace(OPTIONS, reach=Reach(layers=(1, 3)))
    some = options.read(trace_chain(model("gemma3"), ITEM, options), 4)
    whole = options.read(traced("gemma3"))

    assert some["layer"].values.tolist() == [1, 3]
    for name in ("waad", "fai"):
        np.testing.assert_array_equal(some[name], whole[name])
    assert whole["reach"].sel(layer=[0, 2]).isnull().all()


def test_a_chain_is_a_trace_of_its_response():
    statistics = (*ROWS, *COLUMNS[:-1], FutureInfluence(4, END))
    capture = interp.Capture(statistics, edges=None, residual=False)
    whole = interp.trace(model("llama"), IDS, capture=capture)["self"]
    node = traced("llama")["self"]

    for name in ("distance", "first_mass", "received", "fai"):
        dim = node[name].dims[-1]
        own = whole[name].sel({dim: slice(FIRST, None)})
        torch.testing.assert_close(
            torch.tensor(node[name].values), torch.tensor(own.values), equal_nan=True
        )
        assert node[name].attrs["units"]
    assert node["query"].values.tolist() == list(range(FIRST, N_TOKENS))


def test_the_model_is_left_as_it_was(untouched):
    with untouched(model("llama").module):
        trace_chain(model("llama"), ITEM)


def test_what_cannot_be_traced_is_refused():
    llama = model("llama")
    within = Item("a", ITEM.ids, (FIRST, N_TOKENS - 1))
    with pytest.raises(InputError, match="A response ends its text"):
        trace_chain(llama, within)
    with pytest.raises(InputError, match=r"layers \(0, 9\).*0 to 1"):
        trace_chain(llama, ITEM, Rhythm(reach=Reach(layers=(0, 9))))
    with pytest.raises(UnsupportedModelError, match="decoder-only"):
        trace_chain(interp.load(tiny("bert")[0]), ITEM)
    heads = interp.HeadSet.of([(0, 1)], llama.anatomy)
    with AblateHeads(heads)(llama), pytest.raises(InputError, match="intervention"):
        trace_chain(llama, ITEM)
