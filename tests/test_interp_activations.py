"""Recorded activations against what transformers and plain hooks give."""

import json

import pytest
import torch
from edited_calls import DECODERS
from tiny_models import D_HEAD, ENCODER_DECODERS, N_TOKENS, tiny
from torch import nn

import interp
from interp.activations import AT_BLOCKS, AT_SITES, record
from interp.capture import Capture
from interp.errors import InputError
from interp.heads import HeadSet
from interp.interventions.ablation import AblateHeads
from interp.kernels.definitions import Pattern

PROJECTIONS = ("o_proj", "c_proj", "dense")
TEXT = list(range(10, 20))


def recorded(name, *parts):
    module, inputs = tiny(name)
    return module, inputs, record(interp.load(module), inputs, parts)


def tensor(values):
    return torch.from_numpy(values.values)


@pytest.mark.parametrize("name", DECODERS)
class TestFamilies:
    def test_the_stream_is_what_transformers_calls_hidden_states(self, name):
        module, inputs, tree = recorded(name, "stream")
        with torch.no_grad():
            states = module(**inputs, output_hidden_states=True).hidden_states
        stream = tensor(tree["residual"]["stream"])
        assert stream.shape[1] == len(states)
        for layer, wanted in enumerate(states[:-1]):  # the last one is normalized
            torch.testing.assert_close(stream[:, layer], wanted, atol=1e-4, rtol=1e-4)

    def test_both_halves_add_up_to_the_stream(self, name):
        _, _, tree = recorded(name, *AT_BLOCKS)
        parts = tree["residual"].to_dataset()
        total = parts["attention"] + parts["mlp"]
        stream = parts["stream"]
        step = stream.diff("layer")
        torch.testing.assert_close(tensor(total), tensor(step), atol=1e-3, rtol=1e-3)

    def test_head_outputs_are_what_the_output_projection_is_given(self, name):
        module, inputs, tree = recorded(name, "head_output")
        seen = []
        parts = dict(module.named_modules())
        for site in interp.Anatomy.of(module).at("self"):
            own = dict(parts[site.module_name].named_children())
            [projection] = [own[each] for each in PROJECTIONS if each in own]
            projection.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        with torch.no_grad():
            module(**inputs)
        outputs = tensor(tree["self"]["head_output"]).flatten(-2)
        wanted = torch.stack(seen, 1)
        torch.testing.assert_close(outputs, wanted, atol=1e-4, rtol=1e-4)


def test_queries_and_keys_are_those_that_attend():
    module, inputs, tree = recorded("llama", "q", "k", "v", "head_output")
    node = tree["self"]
    q, k, v = (tensor(node[name]).transpose(2, 3) for name in ("q", "k", "v"))
    traced = interp.trace(module, inputs, capture=Capture((Pattern(),), None))["self"]
    scores = q @ k.repeat_interleave(2, 2).mT * D_HEAD**-0.5
    hidden = torch.ones(N_TOKENS, N_TOKENS, dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(pattern, tensor(traced["pattern"]), atol=1e-5, rtol=1e-4)
    output = (pattern @ v.repeat_interleave(2, 2)).transpose(2, 3)
    wanted = tensor(node["head_output"])
    torch.testing.assert_close(output, wanted, atol=1e-4, rtol=1e-4)


def test_axes_are_named_and_one_text_has_no_sample_axis():
    model = interp.load(tiny("llama")[0])
    tree = record(model, TEXT)
    for name, dims in AT_SITES.items():
        assert tree["self"][name].dims == dims
    for name, dims in AT_BLOCKS.items():
        assert tree["residual"][name].dims == dims
    assert tree["residual"].sizes["layer"] == tree["residual"].sizes["block"] + 1 == 3
    batch = record(model, [TEXT, TEXT[::-1]], ("v",))["self"]["v"]
    assert batch.dims == ("sample", "layer", "key", "kv_head", "d_value")
    alone = record(model, TEXT[::-1], ("v",))["self"]["v"]
    torch.testing.assert_close(tensor(batch[1]), tensor(alone))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_kind_of_site_and_both_streams_have_a_node(name):
    _, _, tree = recorded(name, "q", "k", "stream")
    assert set(tree.children) == {
        "self",
        "cross",
        "encoder",
        "residual",
        "encoder_residual",
    }
    cross = tree["cross"]
    assert cross.sizes["query"] == tree["self"].sizes["query"] == N_TOKENS
    assert cross.sizes["key"] == tree["encoder"].sizes["key"] != N_TOKENS


def test_half_precision_is_kept_as_float32_and_double_as_double():
    for dtype, wanted in ((torch.bfloat16, "float32"), (torch.float64, "float64")):
        model = interp.load(tiny("llama")[0].to(dtype))
        assert record(model, TEXT, ("stream",))["residual"]["stream"].dtype == wanted


def test_a_run_tells_its_text_and_what_it_ran_under():
    model = interp.load(tiny("llama")[0])
    ablate = AblateHeads(HeadSet.of([(0, 1)], model.anatomy))
    plain, other = record(model, TEXT, ("q",)), record(model, TEXT[1:], ("q",))
    with ablate(model):
        under = record(model, TEXT, ("q", "head_output"))
    assert plain.attrs["input_hash"] == under.attrs["input_hash"]
    assert plain.attrs["input_hash"] != other.attrs["input_hash"]
    assert json.loads(plain.attrs["interventions"]) == []
    assert json.loads(under.attrs["interventions"]) == [str(ablate)]
    assert not under["self"]["head_output"][0, :, 1].any()
    assert not under["self"]["q"][1].equals(plain["self"]["q"][1])


def test_nothing_is_left_behind_also_when_too_much_was_asked_for(untouched):
    model = interp.load(tiny("llama")[0])
    with untouched(model.module):
        record(model, TEXT)
        with pytest.raises(InputError, match="5,000 bytes"):
            record(model, TEXT, limit=5000)


def test_what_cannot_be_recorded_is_refused():
    model = interp.load(tiny("llama")[0])
    with pytest.raises(InputError, match="head_output, q, k, v"):
        record(model, TEXT, ("query",))
    with pytest.raises(InputError, match="different length"):
        record(model, [TEXT, TEXT[:5]])
    cut = record(model, [TEXT, TEXT[:5]], ("q",), max_tokens=5)
    assert cut["self"].sizes["query"] == 5


def test_a_model_in_training_mode_is_recorded_without_dropout():
    module, inputs, tree = recorded("gpt2", "stream")
    model = interp.load(module)
    module.train()
    assert any(isinstance(part, nn.Dropout) for part in module.modules())
    again = record(model, inputs, ("stream",))
    assert again["residual"].to_dataset().equals(tree["residual"].to_dataset())
    assert module.training
