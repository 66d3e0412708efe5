"""Models that nnsight has wrapped: the module itself, and attention in its trace."""

import pytest
import torch
import xarray as xr
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.activations import record
from interp.adapters import nnsight as door
from interp.errors import InputError, UnsupportedModelError
from interp.interventions.ablation import AblateHeads
from interp.interventions.edges import CutEdges
from interp.interventions.patching import PatchStream

nnsight = pytest.importorskip("nnsight")

FAMILIES = ["llama", "gemma3", "gpt_oss", "gpt2", "qwen3"]
IDS = torch.tensor([[3, 9, 50, 9, 33, 70, 3, 9, 41, 50]])
TEXT = " ".join(f"w{token}" for token in IDS[0].tolist())


def wrapped(name):
    return nnsight.TransformersModel(
        tiny(name)[0], task="text-generation", tokenizer=tiny_tokenizer()
    )


def same(ours: xr.DataTree, theirs: xr.DataTree) -> None:
    assert set(ours.children) == set(theirs.children)
    for node in ours.children:
        for name in ours[node].data_vars:
            a, b = (torch.from_numpy(t[node][name].values) for t in (ours, theirs))
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("way", ["auto", "nnsight"])
def test_a_wrapped_model_gives_the_trace_of_its_module(name, way, untouched):
    wanted = interp.trace(tiny(name)[0], TEXT, tokenizer=tiny_tokenizer())
    model = wrapped(name)
    with untouched(model._module):
        if way == "auto":
            trace = interp.trace(model, TEXT)
        else:
            trace = interp.trace(model, TEXT, door="nnsight")
    same(trace, wanted)
    assert ("nnsight" in trace.attrs["door"]) is (way == "nnsight")
    assert trace.attrs["model_hash"] == wanted.attrs["model_hash"]


def test_a_padded_batch_is_the_same_at_both_doors():
    texts = [TEXT, "w9 w8 w7 w6"]
    model = wrapped("mistral")
    same(interp.trace(model, texts, door="nnsight"), interp.trace(model, texts))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_interventions_give_the_same_logits_in_an_nnsight_trace(name):
    plain, wrapper = interp.load(tiny(name)[0]), wrapped(name)
    model = interp.load(wrapper)
    heads = interp.HeadSet.parse("L0.H1,L1.H2", plain.anatomy)
    source = record(plain, IDS.flip(1), ("stream",))
    for change in (
        AblateHeads(heads),
        CutEdges([7], [5], heads),
        PatchStream(source, (1,), tokens=(4,)),
    ):
        with torch.no_grad(), change(plain):
            wanted = plain.module(IDS).logits
        with torch.no_grad(), change(wrapper), wrapper.trace(IDS):
            ours = wrapper.lm_head.output.save()
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
        with change(plain):
            trace = interp.trace(plain, IDS)
        with change(model):
            same(interp.trace(wrapper, IDS, door="nnsight"), trace)


def test_nnsight_traces_run_as_before_after_a_trace():
    model = wrapped("llama")

    def logits():
        with torch.no_grad(), model.trace(IDS):
            saved = model.lm_head.output.save()
        return saved.clone()

    before = logits()
    interp.trace(model, IDS, door="nnsight")
    interp.trace(model, IDS)
    assert torch.equal(logits(), before)


def test_a_module_without_the_call_is_refused_with_what_was_looked_for():
    with pytest.raises(
        UnsupportedModelError, match="'attention_interface_<n>' was loo"
    ):
        interp.trace(wrapped("gptj"), IDS, door="nnsight")
    interp.trace(wrapped("gptj"), IDS)


def test_a_model_without_weights_is_refused():
    model = wrapped("llama")
    model._module.to("meta")
    with pytest.raises(InputError, match=r"dispatch=True"):
        interp.load(model)


def test_a_moved_name_is_told():
    model = wrapped("llama")
    vars(model)["_module"] = None
    with pytest.raises(UnsupportedModelError, match="'_module'; found NoneType"):
        door.wrapped_model(model)


def test_the_door_needs_the_wrapper():
    with pytest.raises(InputError, match="an nnsight model, got Model"):
        interp.trace(interp.load(wrapped("llama")), IDS, door="nnsight")
