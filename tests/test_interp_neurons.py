"""The matrix of an MLP's neurons, whatever the family calls it."""

import pytest
import torch
from tiny_models import D_MODEL, tiny

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.neurons import down_projection

NAMES = {
    "llama": "mlp.down_proj",
    "mistral": "mlp.down_proj",
    "gemma3": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "whisper": "fc2",
    "modernbert": "mlp.Wo",
}


def found(name, block=1):
    module, _ = tiny(name)
    return down_projection(module, interp.Anatomy.of(module), block)


@pytest.mark.parametrize("name", NAMES)
def test_the_down_projection_is_found_by_what_it_is(name):
    projection = found(name)

    assert projection.name == NAMES[name]
    assert projection.weight.shape[0] == D_MODEL < projection.weight.shape[1]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_weight_is_what_a_neuron_writes_to_a_channel(name):
    projection = found(name)
    alone = torch.zeros(1, projection.weight.shape[1])
    alone[0, 5] = 1
    with torch.no_grad():
        written = projection.module(alone)[0]
    if projection.bias is not None:
        written = written - projection.bias

    torch.testing.assert_close(projection.weight[:, 5], written)


def test_the_rank_counts_larger_magnitudes_of_the_whole_matrix():
    projection = found("llama")
    with torch.no_grad():
        projection.weight[3, 4], projection.weight[5, 6] = -90.0, 80.0

    assert [projection.rank(3, 4), projection.rank(5, 6)] == [1, 2]
    assert projection.rank(3, 5) > 2


@pytest.mark.parametrize("name", ["gpt_oss", "llama4", "deepseek_v3"])
def test_neurons_of_experts_are_refused_with_the_reason(name):
    with pytest.raises(UnsupportedModelError, match=r"router.*experts.*dense MLP"):
        found(name)


def test_a_dense_block_beside_experts_has_neurons():
    assert found("deepseek_v3", block=0).name.endswith("down_proj")


def test_several_maps_to_the_stream_are_named():
    both = r"attention\.output\.dense, output\.dense"
    with pytest.raises(UnsupportedModelError, match=both):
        found("bert")


def test_a_model_without_attention_is_refused():
    with pytest.raises(UnsupportedModelError, match="has no attention"):
        found("mamba")


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_is_not_there_is_refused(block):
    with pytest.raises(InputError, match=rf"block {block}.*0 to 1"):
        found("llama", block)


@pytest.mark.parametrize("place", [(D_MODEL, 0), (0, 48), (-1, 0)])
def test_a_weight_that_is_not_there_is_refused(place):
    with pytest.raises(InputError, match="neurons 0 to 47 and channels 0 to 31"):
        found("llama").require(*place)
