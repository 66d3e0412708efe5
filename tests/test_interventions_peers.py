"""Head ablation beside the same done by hand, by TransformerLens and by nnsight."""

import pytest
import torch

import interp
from interp.interventions.ablation import AblateHeads
from interp.interventions.edges import CutEdges
from interp.interventions.prefix import twin

TEXT = "The lighthouse keeper wrote in the log: the lamp is lit, the lamp is lit."
HEADS = "L5.H2,L12.H7,L18.H6"
LAYER, HEAD, WIDTH = 18, 6, 64

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def model():
    return interp.load("smollm2-135m")


@pytest.fixture(scope="module")
def ids(model):
    return torch.tensor([model.tokenizer(TEXT)["input_ids"]])


@pytest.fixture(scope="module")
def heads(model):
    return interp.HeadSet.parse(HEADS, model.anatomy)


@pytest.fixture(scope="module")
def ablated(model, ids, heads):
    with torch.no_grad(), AblateHeads(heads)(model):
        return model.module(ids, use_cache=False).logits


def hooked(model, ids, heads, place):
    """Zeros at a slice of what goes into, or comes out of, the output projection."""

    def cut(values, own):
        values = values.clone()
        for head in own:
            values[..., head * WIDTH : (head + 1) * WIDTH] = 0
        return values

    handles = []
    for layer, own in heads.by_layer().items():
        projection = model.module.model.layers[layer].self_attn.o_proj
        if place == "input":
            hook = lambda m, i, own=own: (cut(i[0], own),)  # noqa: E731
            handles.append(projection.register_forward_pre_hook(hook))
        else:
            hook = lambda m, i, o, own=own: cut(o, own)  # noqa: E731
            handles.append(projection.register_forward_hook(hook))
    with torch.no_grad():
        logits = model.module(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def apart(a, b):
    return float((a - b).abs().max())


def test_it_is_a_pre_hook_on_the_output_projection(model, ids, heads, ablated):
    with torch.no_grad():
        plain = model.module(ids, use_cache=False).logits
    assert apart(ablated, hooked(model, ids, heads, "input")) < 2e-4
    assert apart(ablated, plain) > 0.5


def test_a_slice_of_what_the_projection_gives_is_not_a_head(model, ids, heads, ablated):
    assert apart(ablated, hooked(model, ids, heads, "output")) > 1.0


def test_it_is_what_transformer_lens_does_at_hook_z(model, ids, heads, ablated):
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    own = twin(model)  # TransformerLens edits a model in place
    bridge = bridges.TransformerBridge.boot_transformers(
        "smollm2-135m", hf_model=own.module, tokenizer=own.tokenizer, device="cpu"
    )

    def zero(z, hook):
        layer = int(hook.name.split(".")[1])
        z[:, :, list(heads.by_layer()[layer])] = 0
        return z

    names = [(f"blocks.{layer}.attn.hook_z", zero) for layer in heads.by_layer()]
    with torch.no_grad():
        logits = bridge.run_with_hooks(ids, return_type="logits", fwd_hooks=names)
    assert apart(ablated, logits) < 2e-4


def test_it_is_what_nnsight_does_at_the_projections_input(model, ids, heads, ablated):
    nnsight = pytest.importorskip("nnsight")
    wrapped = nnsight.TransformersModel(
        twin(model).module, task="text-generation", tokenizer=model.tokenizer
    )
    with torch.no_grad(), wrapped.trace(ids):
        for layer, own in heads.by_layer().items():
            projection = wrapped.model.layers[layer].self_attn.o_proj
            for head in own:
                projection.input[..., head * WIDTH : (head + 1) * WIDTH] = 0
        logits = wrapped.lm_head.output.save()
    assert apart(ablated, logits) < 2e-4


def test_a_cut_edge_is_what_transformer_lens_does_to_the_scores(model, ids):
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    head = interp.HeadSet.of([(LAYER, HEAD)], model.anatomy)
    query, key = ids.shape[1] - 1, 8
    with torch.no_grad(), CutEdges([query], [key], head)(model):
        cut = model.module(ids, use_cache=False).logits
    own = twin(model)
    bridge = bridges.TransformerBridge.boot_transformers(
        "smollm2-135m", hf_model=own.module, tokenizer=own.tokenizer, device="cpu"
    )

    def hide(scores, hook):
        scores[:, HEAD, query, key] = -torch.inf
        return scores

    name = f"blocks.{LAYER}.attn.hook_attn_scores"
    with torch.no_grad():
        logits = bridge.run_with_hooks(
            ids, return_type="logits", fwd_hooks=[(name, hide)]
        )
    assert apart(cut, logits) < 2e-4
