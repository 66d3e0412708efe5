import hand_traces as hand
import numpy as np
import pytest
import torch
import xarray as xr
from tiny_models import tiny

import interp
from interp.activations import record
from interp.capture import Capture
from interp.errors import InputError, NotCapturedError
from interp.kernels.definitions import Norms, Received
from interp.probes.sink_tokens import IntermediateSinks, sink_depth, sink_norms
from interp.probes.sinks import SinkTokens

N = 12
FIRST, FOURTH = np.zeros(N, dtype=int), np.array([0, 1, 2, *[3] * 9])
CAPTURE = Capture((Received(), Norms()), edges=None, residual=True)

# Two blocks, so three layers of the stream. Token 0 and token 3 have channel 5 in layer
# 1, token 2 has channel 6 there, which token 0 has too, but not as its largest.
MAXIMUM = np.ones((3, N))
CHANNEL = np.zeros((3, N), dtype=int)
COSINE = np.zeros((3, N))
MAXIMUM[1, [0, 2, 3, 4]] = 900, 300, 500, 200
CHANNEL[1, [0, 2, 3, 4]] = 5, 6, 5, 9
COSINE[1, [0, 2, 3, 4]] = 1, 0.95, 0.97, 0.99
TOP = [(1, 900, 0, 5), (1, 500, 3, 5), (1, -400, 0, 6), (1, 300, 2, 6), (1, 200, 3, 6)]


def made(**changes):
    """A trace whose block 1 looks at token 0 with one head and at token 3 with one."""
    block = np.stack([hand.pointing(FIRST), hand.pointing(FOURTH)])
    arrays = {"maximum": MAXIMUM, "channel": CHANNEL, "cosine": COSINE, "top": TOP}
    arrays = {"median_all": np.ones(3), **arrays, **changes}
    return hand.trace(
        self=hand.site(np.stack([hand.uniform(N, 1, 2)[0], block])),
        residual=hand.residual(**arrays),
    )


def test_a_token_like_the_first_that_heads_attend_to_is_an_intermediate_sink():
    found = IntermediateSinks()(made())

    assert found.dims == ("layer_residual", "token")
    assert np.argwhere(found.values).tolist() == [[1, 3]]


def test_the_evidence_tells_what_a_token_has_in_common_with_the_first():
    told = IntermediateSinks().evidence(made()).sel(layer_residual=1)

    # Token 3 shares channel 5, its largest, and 6; token 2 its largest with a smaller
    # one of token 0; token 4 has a massive channel, but one of its own.
    assert told["shared"].values[:5].tolist() == [2, 0, 1, 2, 0]
    assert told["heads"].values[:5].tolist() == [1, 0, 0, 1, 0]
    assert told["cosine"].values[3] == 0.97


def test_the_last_layer_of_the_stream_is_read_by_no_head():
    told = IntermediateSinks().evidence(made())

    assert told["heads"].isel(layer_residual=-1).isnull().all()
    assert told["heads"].isel(layer_residual=slice(0, 2)).notnull().all()


def test_the_table_lists_the_intermediate_sinks():
    assert IntermediateSinks().table(made()).to_dict("records") == [
        {
            "layer_residual": 1,
            "token": 3,
            "token_text": "t3",
            "cosine": 0.97,
            "shared": 2,
            "heads": 1,
        }
    ]


@pytest.mark.parametrize(
    "options",
    [{"cosine": 0.98}, {"ratio": 1000.0}, {"epsilon": 1.0}, {"min_queries": 10}],
)
def test_each_part_of_the_criterion_is_needed(options):
    assert not IntermediateSinks(**options)(made()).any()


def test_texts_of_a_batch_are_judged_by_their_own_first_token():
    texts = [made(), made(cosine=np.zeros((3, N)))]
    both = hand.trace(
        **{
            node: xr.concat([each[node].to_dataset() for each in texts], "sample")
            for node in ("self", "residual")
        }
    )
    found = IntermediateSinks()(both)

    for sample, alone in enumerate(texts):
        np.testing.assert_array_equal(
            found.isel(sample=sample).transpose("layer_residual", "token"),
            IntermediateSinks()(alone),
        )
    assert IntermediateSinks().table(both)["sample"].tolist() == [0]


def test_a_stream_without_cosines_is_refused_with_the_remedy():
    bare = made()
    bare["residual"] = bare["residual"].to_dataset().drop_vars("cosine")
    with pytest.raises(NotCapturedError, match=r"Capture\(residual=True\)"):
        IntermediateSinks()(bare)


def test_cross_attention_has_no_intermediate_sinks():
    trace = made()
    trace["cross"] = trace["self"]
    with pytest.raises(InputError, match="site cross"):
        IntermediateSinks(site="cross")(trace)


def test_sinks_over_depth_are_shares_of_heads():
    depth = sink_depth(made())

    assert depth["first"].values.tolist() == [1, 0.5]  # uniform rows give key 0 most
    assert depth["later"].values.tolist() == [1, 0.5]
    assert depth["first_interval"].isnull().all()
    assert depth["first"].attrs["units"] == "fraction"
    strict = sink_depth(made(), SinkTokens(epsilon=0.3))
    assert strict["later"].values.tolist() == [0, 0.5]


def test_sinks_over_depth_have_intervals_over_texts():
    texts = [hand.site(hand.random_weights(seed, n_tokens=N)) for seed in range(4)]
    trace = hand.trace(self=xr.concat(texts, "sample"))
    sinks = SinkTokens(epsilon=0.25)
    depth = sink_depth(trace, sinks)
    alone = [sink_depth(hand.trace(self=text), sinks)["later"] for text in texts]

    np.testing.assert_allclose(depth["later"], xr.concat(alone, "text").mean("text"))
    low, high = depth["later_interval"].transpose("bound", ...).values
    assert (low <= depth["later"].values).all()
    assert (depth["later"].values <= high).all()
    assert (low < high).any()


def norms(sinks, others):
    """A site of one head whose first key has other norms than the rest."""
    node = hand.site(hand.uniform(4))
    values = np.array([[[sinks, *[others] * 3]]], dtype=float)
    return node.assign(
        key_norm=(("layer", "head", "key"), values),
        value_norm=(("layer", "head", "key"), values / 2),
    )


def test_norms_of_sinks_are_told_as_a_share_of_the_others():
    told = sink_norms(hand.trace(self=norms(1, 4)))

    assert told["key_norm_ratio"].item() == told["value_norm_ratio"].item() == 0.25
    assert told["key_norm_ratio_interval"].isnull().all()
    assert told.attrs["interval"] == "none: one text"


def test_norms_of_sinks_have_an_interval_over_texts():
    trace = hand.trace(self=xr.concat([norms(n, 4) for n in (1, 2, 3)], "sample"))
    told = sink_norms(trace)

    assert told["value_norm_ratio"].item() == 0.5
    low, high = told["value_norm_ratio_interval"].values.ravel()
    assert 0.25 <= low < 0.5 < high <= 0.75


def test_norms_can_be_those_of_any_sinks():
    trace = made()
    node = trace["self"].to_dataset()
    lengths = xr.where(node["key"] == 3, 12.0, 1.0) * xr.ones_like(node["received"])
    node = node.assign(key_norm=lengths, value_norm=lengths)
    told = sink_norms(hand.trace(self=node), SinkTokens().heads(trace))

    assert told["key_norm_ratio"].sel(layer=1).values.tolist() == [0.5, 12]


def test_norms_that_were_not_captured_are_named_with_the_remedy():
    with pytest.raises(NotCapturedError, match=r"key_norm.*\(Norms\(\),\)"):
        sink_norms(made())


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_sinks_and_norms_of_a_model_are_those_of_its_dense_maps(name):
    module, inputs = tiny(name)
    if name != "gpt_oss":  # whose experts know no doubles
        module.double()
    module.set_attn_implementation("eager")
    with torch.no_grad():
        output = module(**inputs, output_attentions=True, output_hidden_states=True)
    weights = torch.stack([each[..., :N] for each in output.attentions], 1)
    seen = (weights > 0).sum(-2)
    received = weights.sum(-2) / seen
    states = torch.stack(output.hidden_states[:-1], 1)
    cosine = torch.cosine_similarity(states[:, :, :1], states, dim=-1)
    trace = interp.trace(module, inputs, capture=CAPTURE)

    truth = (received > 0.1) & (seen >= 4)
    ours = SinkTokens(epsilon=0.1, min_queries=4).heads(trace)
    np.testing.assert_array_equal(ours.transpose("sample", ...), truth)
    detector = IntermediateSinks(cosine=0.2, ratio=2.0, floor=0.0, min_queries=4)
    told = detector.evidence(trace).transpose("sample", "layer_residual", "token")
    told = told.isel(layer_residual=slice(0, -1))
    np.testing.assert_allclose(told["cosine"], cosine.numpy(), atol=1e-5)
    np.testing.assert_array_equal(told["heads"], truth.sum(2))
    median = states.abs().flatten(2).median(-1).values
    massive = states.abs() >= 2 * median[..., None, None]
    shared = (massive & massive[:, :, :1]).sum(-1).numpy()
    # A trace does not know every massive cell.
    assert (told["shared"] <= shared).all()
    assert (told["shared"].sel(token=0) > 0).all()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "whisper"])
def test_norms_are_those_of_what_is_attended_with(name):
    module, inputs = tiny(name)
    trace = interp.trace(module, inputs, capture=Capture((Norms(),), None, False))
    told = record(interp.load(module), inputs, ("k", "v"))
    for site in trace.children:
        for kind in ("key", "value"):
            vectors = told[site][kind[0]]
            last = next(dim for dim in vectors.dims if str(dim).startswith("d_"))
            group = trace[site].sizes["head"] // vectors.sizes["kv_head"]
            norm = np.sqrt((vectors.astype(float) ** 2).sum(last))
            wanted = norm.transpose("sample", "layer", "kv_head", "key").values
            ours = trace[site][f"{kind}_norm"].values
            np.testing.assert_allclose(ours, wanted.repeat(group, 2), rtol=1e-5)
