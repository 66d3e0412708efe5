"""Attention that models compute by themselves: traced and changed like any other."""

import json
from unittest import mock

import pytest
import torch
import transformers as hf
from test_families import (
    CAPTURE,
    SITES,
    alone,
    arrays_of,
    check_site,
    edges_of,
    maps_of,
    run,
)
from tiny_models import BY_HAND, N_HEADS, N_TOKENS, WINDOW, tiny
from tolerance import assert_as_precise
from torch.overrides import _get_current_function_mode_stack

import interp
from interp.activations import record
from interp.anatomy import Anatomy
from interp.errors import UnsupportedModelError
from interp.interventions.ablation import AblateHeads
from interp.interventions.edges import CutEdges
from interp.interventions.patching import PatchHeads
from interp.interventions.principles import KeyScores
from interp.interventions.sinks import ScaleSinks
from interp.tap import tap

# Under sdpa Falcon gives no right maps: its eager path adds the bool mask as a number.
# With ALiBi it has none at all: the eager path adds the bias twice, as mask and bias.
TRUTH = {"falcon": "falcon_eager", "falcon_grouped": "falcon_grouped_eager"}
WITH_MAPS = [name for name in BY_HAND if name != "falcon_alibi"]
DECODERS = [name for name in BY_HAND if name not in {"mvp", "deberta_v2"}]
SCORED = ["gptj", "bloom", "mpt", "gpt_neo", "codegen", "falcon_eager", "deberta_v2"]
PROJECTION = {"gptj": "out_proj", "gpt_neo": "out_proj", "mpt": "out_proj"}


def check(name, inputs):
    trace = interp.trace(tiny(name)[0], inputs, capture=CAPTURE)
    truth = TRUTH.get(name, name)
    for sample in range(len(next(iter(inputs.values())))):
        own = alone(inputs, sample)
        exact = run(truth, own, torch.float64)
        twins = [run(truth, own, torch.float32, moved) for moved in range(4)]
        for site in [site for site in SITES if site in trace.children]:
            edges = edges_of(own, site)
            arrays = [
                arrays_of([p.double() for p in maps_of(each, site)], edges)
                for each in (exact, *twins)
            ]
            node = trace[site].to_dataset().sel(sample=sample)
            check_site(node, arrays[0], arrays[1:])
    return trace


@pytest.mark.parametrize("name", WITH_MAPS)
def test_a_trace_equals_the_eager_maps(name):
    trace = check(name, tiny(name)[1])
    kind = trace.attrs["door"]
    assert kind.startswith("torch functions of")
    assert "size query x key" in kind
    assert trace.attrs["implementations"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gptj", "bloom", "mpt", "falcon", "deberta_v2"])
def test_each_text_of_a_padded_batch_equals_its_own_eager_maps(name, side):
    ids = tiny(name)[1]["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, slice(0, 5) if side == "left" else slice(-5, None)] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name == "deberta_v2":  # absolute positions too: those that the texts alone have
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    check(name, inputs)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_output_under_the_tap_is_the_model_s_own(name, untouched):
    model, inputs = tiny(name)
    with torch.no_grad():
        before = model(**inputs)[0]
        with untouched(model), tap(model, lambda visit: None):
            under = model(**inputs)[0]
        after = model(**inputs)[0]
    truth = TRUTH.get(name, name)
    twins = [run(truth, inputs, torch.float32, moved)[0] for moved in range(4)]
    exact = run(truth, inputs, torch.float64)[0]
    assert_as_precise(under, exact.double(), before, *twins)
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", BY_HAND)
def test_an_ablated_head_is_a_pre_hook_on_the_output_projection(name, untouched):
    model, inputs = tiny(name)
    loaded = interp.load(model)
    site = "encoder" if name == "deberta_v2" else "self"
    heads = interp.HeadSet.parse("L0.H1,L1.H2", loaded.anatomy, site=site)
    with torch.no_grad():
        plain = model(**inputs)[0]
        with untouched(model), AblateHeads(heads)(loaded):
            ablated = model(**inputs)[0]
        handles = []
        for layer, own in heads.by_layer().items():
            owner = loaded.anatomy.at(site)[layer].module_name
            width = loaded.anatomy.at(site)[layer].d_value

            def cut(_module, inputs, own=own, width=width):
                values = inputs[0].clone()
                for head in own:
                    values[..., head * width : (head + 1) * width] = 0
                return (values,)

            if name == "deberta_v2":
                owner = owner.removesuffix(".self") + ".output"
            parts = dict(model.get_submodule(owner).named_children())
            projection = parts.get("out_proj") or parts["dense"]
            handles.append(projection.register_forward_pre_hook(cut))
        by_hand = model(**inputs)[0]
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(ablated, by_hand)
    assert (plain - ablated).abs().max() > 100 * (ablated - by_hand).abs().max()


@pytest.mark.parametrize("name", SCORED)
def test_a_cut_edge_is_a_score_of_minus_infinity(name):
    model, inputs = tiny(name)
    loaded = interp.load(model)
    site = loaded.anatomy.site_names[0]
    layer, head, query, key = 1, 2, 9, 4
    if name == "gpt_neo":
        key = query - WINDOW + 2
    heads = interp.HeadSet.of([(layer, head)], loaded.anatomy, site)
    softmax = torch.nn.functional.softmax
    n_calls = 0

    def hidden(scores, *args, **options):
        nonlocal n_calls
        if scores.dim() == 4:
            if n_calls == layer:
                scores = scores.clone()
                scores[:, head, query, key] = -torch.inf
            n_calls += 1
        return softmax(scores, *args, **options)

    with torch.no_grad():
        with mock.patch.object(torch.nn.functional, "softmax", hidden):
            by_hand = model(**inputs)[0]
        with CutEdges([query], [key], heads)(loaded):
            cut = model(**inputs)[0]
        plain = model(**inputs)[0]
    assert n_calls == 2
    torch.testing.assert_close(cut, by_hand)
    assert not torch.allclose(cut, plain)


def test_patched_values_take_effect_where_only_scores_are_seen():
    loaded = interp.load(tiny("gptj")[0])
    text, other = [[*range(10, 20)]], [[*range(40, 50)]]
    source = record(loaded, torch.tensor(other), ("v", "head_output"))
    every = interp.HeadSet.of([(0, h) for h in range(N_HEADS)], loaded.anatomy)
    with PatchHeads(source, every, "v")(loaded):
        patched = record(loaded, torch.tensor(text), ("v",))
    for layer, same in ((0, True), (1, False)):
        ours, theirs = (t["self"]["v"].sel(layer=layer) for t in (patched, source))
        assert bool((ours == theirs).all()) is same


def test_what_needs_queries_and_keys_is_refused_where_only_scores_are_seen():
    loaded = interp.load(tiny("gptj")[0])
    every = interp.HeadSet.of([(0, h) for h in range(N_HEADS)], loaded.anatomy)
    ids = torch.tensor([[*range(10, 20)]])
    for change in (KeyScores(every), ScaleSinks(every, 2.0, on="key")):
        with (
            change(loaded),
            pytest.raises(UnsupportedModelError, match=r"GPTJAttention.*only its sco"),
        ):
            loaded.module(ids)
    with pytest.raises(UnsupportedModelError, match="activation q was asked"):
        record(loaded, ids, ("q",))
    # Falcon hands its queries and keys to torch.
    falcon = interp.load(tiny("falcon")[0])
    assert record(falcon, ids, ("q",))["self"]["q"].sizes["d_head"] == 8


def test_generation_sees_the_positions_of_a_cache():
    model, inputs = tiny("gptj")
    seen = []
    ids = inputs["input_ids"][:1]
    with tap(model, lambda visit: seen.append(visit.call.mask)):
        model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
    steps = [(rule.query_offset, rule.query_length, rule.key_length) for rule in seen]
    n = N_TOKENS
    assert steps[::2] == [(0, n, n), (n, 1, n + 1), (n + 1, 1, n + 2)]


def test_an_ablated_head_stays_out_of_every_step_of_a_generation():
    model, inputs = tiny("bloom")
    loaded = interp.load(model)
    heads = interp.HeadSet.parse("L0.H1,L1.H2", loaded.anatomy)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with AblateHeads(heads)(loaded):
        cached = model.generate(inputs["input_ids"], **options)
        whole = model.generate(inputs["input_ids"], **options, use_cache=False)
    assert torch.equal(cached, whole)


def test_the_innermost_of_nested_taps_sees():
    model, inputs = tiny("gptj")
    inner, outer = [], []
    with torch.no_grad(), tap(model, outer.append):
        with tap(model, inner.append):
            model(**inputs)
        model(**inputs)
    assert len(inner) == len(outer) == 2


def test_a_failure_within_the_model_leaves_nothing_behind(untouched):
    model, inputs = tiny("gptj")

    def fail(visit):
        raise RuntimeError("full disk")

    with (
        untouched(model),
        pytest.raises(RuntimeError, match="full disk"),
        torch.no_grad(),
        tap(model, fail),
    ):
        model(**inputs)
    assert not _get_current_function_mode_stack()
    interp.trace(model, inputs)


def test_attention_of_another_form_is_refused_when_it_runs():
    model, inputs = tiny("gptj")
    owner = model.transformer.h[0].attn
    attend = owner._attn

    def twice(*args):
        attend(*args)
        return attend(*args)

    owner._attn = twice
    with pytest.raises(UnsupportedModelError, match="2 softmax and 2 products"):
        interp.trace(model, inputs)
    owner._attn = lambda query, key, value, mask: (value, None)
    with pytest.raises(UnsupportedModelError, match="0 softmax and 0 products"):
        interp.trace(model, inputs)


def test_weights_that_the_module_changes_after_the_softmax_are_refused():
    model, inputs = tiny("gptj")
    model.transformer.h[1].attn.attn_dropout = torch.nn.Threshold(0.2, 0.0)
    with pytest.raises(UnsupportedModelError, match="changed between softmax and"):
        interp.trace(model, inputs)


def test_windows_of_an_image_are_not_taken_for_samples():
    config = hf.Swinv2Config(
        image_size=8,
        patch_size=2,
        embed_dim=8,
        depths=[2],
        num_heads=[2],
        window_size=2,
    )
    model = hf.Swinv2Model(config).eval()
    with pytest.raises(UnsupportedModelError, match="another form"):
        interp.trace(model, {"pixel_values": torch.randn(2, 3, 8, 8)})


def test_the_anatomy_says_how_these_models_are_reached():
    anatomy = Anatomy.of(tiny("gpt_neo")[0])
    assert "functions of torch" in anatomy.capability("tap").reason
    assert not anatomy.capability("linear_memory").available
    assert "GPTNeoSelfAttention" in anatomy.capability("linear_memory").reason
    assert [site.n_kv_heads for site in Anatomy.of(tiny("falcon")[0]).sites] == [1, 1]
    assert Anatomy.of(tiny("deberta_v2")[0]).site_names == ("encoder",)
    assert set(Anatomy.of(tiny("mvp")[0]).site_names) == {"encoder", "self", "cross"}
    trace = interp.trace(*tiny("gpt_neo"))
    assert json.loads(trace.attrs["skipped"]) == []
