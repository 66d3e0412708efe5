"""What halves and neurons write, against what the model itself adds to its stream."""

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import D_MODEL, N_LAYERS, VOCAB, tiny
from tolerance import assert_as_precise

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.neurons import down_projection
from interp.probes.contributions import Look, cell_writes, neuron_writes

CELL = (5, 3)
FAMILIES = ("llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi3", "opt")
"""Gated or not, with a norm behind, transposed, in parallel with attention, by name."""


def made(name):
    if name != "opt":
        return tiny(name)
    torch.manual_seed(0)
    config = hf.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL,
        ffn_dim=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return hf.OPTForCausalLM(config).eval(), {"input_ids": torch.arange(3, 15)[None]}


def states(module, ids, dtype=torch.float32):
    """Streams in `dtype`, the last one, which is normalized, left out."""
    with torch.no_grad():
        hidden = module.to(dtype)(ids, output_hidden_states=True).hidden_states
    return torch.stack(hidden[:-1])[:, 0]


def wrote(module, ids, block):
    """What each neuron writes to the cell, by hand: `[neuron]`; without a norm."""
    down, seen = down_projection(module, interp.Anatomy.of(module), block), []
    handle = down.module.register_forward_pre_hook(lambda _, given: seen.append(given))
    with torch.no_grad():
        module(ids)
    handle.remove()
    activation = seen[0][0].flatten(0, -2)[CELL[0]]
    return activation * down.weight.detach()[CELL[1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_halves_add_up_to_what_the_block_does(name):
    module, inputs = made(name)
    ids = inputs["input_ids"][:1]
    told = cell_writes(interp.load(module), ids, [CELL, (0, 9)])
    eager = states(module, ids)[:, [5, 0], [3, 9]].T
    truth = states(module, ids, torch.float64)[:, [5, 0], [3, 9]].T
    ours = torch.from_numpy(told["stream"].values[:, : eager.shape[1]]).float()
    assert_as_precise(ours, truth, eager)

    told = cell_writes(interp.load(module.double()), ids, [CELL, (0, 9)])
    change = told["stream"].diff("layer_residual").values
    np.testing.assert_allclose(told["written"].sum("half"), change)


@pytest.mark.parametrize("name", FAMILIES)
def test_neurons_and_bias_add_up_to_what_the_mlp_wrote(name, untouched):
    module, inputs = made(name)
    model = interp.load(module.double())
    with untouched(module):
        for block in range(N_LAYERS):
            told = neuron_writes(model, inputs["input_ids"][:1], block, CELL)
            total = float(told["contribution"].sum()) + told.attrs["bias"]

            np.testing.assert_allclose(total, told.attrs["written"])


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gpt_neox", "opt"])
def test_a_contribution_is_an_activation_times_a_weight(name):
    module, inputs = made(name)
    ids = inputs["input_ids"][:1]
    ours = neuron_writes(interp.load(module), ids, 1, CELL)["contribution"]
    eager, truth = wrote(module, ids, 1), wrote(module.double(), ids, 1)

    assert_as_precise(torch.from_numpy(ours.values).float(), truth, eager)


def test_behind_a_norm_contributions_carry_its_factor():
    module, inputs = made("gemma3")
    ids = inputs["input_ids"][:1]
    told = neuron_writes(interp.load(module.double()), ids, 1, CELL)
    raw = wrote(module, ids, 1)
    factor = told.attrs["written"] / float(raw.sum())

    np.testing.assert_allclose(told["contribution"], factor * raw.numpy())
    assert abs(factor - 1) > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_neuron_that_is_silenced_takes_its_contribution_along(name):
    module, inputs = made(name)
    ids, model = inputs["input_ids"][:1], interp.load(module.double())
    before = neuron_writes(model, ids, 1, CELL)
    neuron = int(abs(before["contribution"].values).argmax())
    with torch.no_grad():
        Look(model, ids, [0]).projection(1).weight[:, neuron] = 0
    after = neuron_writes(model, ids, 1, CELL)

    assert after["contribution"].values[neuron] == 0
    gone = before.attrs["written"] - after.attrs["written"]
    np.testing.assert_allclose(gone, before["contribution"].values[neuron])


def test_a_block_that_does_something_else_is_refused():
    module, inputs = tiny("bart")
    one = {name: values[:1] for name, values in inputs.items()}

    with pytest.raises(UnsupportedModelError, match="do not add up"):
        cell_writes(interp.load(module), one, [CELL])


def test_experts_have_halves_but_no_neurons():
    module, inputs = tiny("gpt_oss")
    model, ids = interp.load(module), inputs["input_ids"][:1]

    assert cell_writes(model, ids, [CELL])["written"].notnull().all()
    with pytest.raises(UnsupportedModelError, match="router"):
        neuron_writes(model, ids, 0, CELL)


def test_cross_attention_is_part_of_the_attention_half():
    module, inputs = tiny("whisper")
    one = {name: values[:1] for name, values in inputs.items()}
    one["input_features"] = one["input_features"].double()
    told = cell_writes(interp.load(module.double()), one, [CELL])

    change = told["stream"].diff("layer_residual").values
    np.testing.assert_allclose(told["written"].sum("half"), change)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([(12, 0)], r"tokens \[12\].*0 to 11"),
        ([], "at least one"),
        ([(0, 32)], "Channel 32.*0 to 31"),
    ],
)
def test_cells_that_are_not_there_are_refused(cells, message):
    module, inputs = tiny("llama")
    with pytest.raises(InputError, match=message):
        cell_writes(interp.load(module), inputs["input_ids"][:1], cells)


def test_two_texts_are_refused():
    module, inputs = tiny("llama")
    with pytest.raises(InputError, match="got 2 texts"):
        cell_writes(interp.load(module), inputs["input_ids"], [CELL])


def test_a_block_that_is_not_there_is_refused():
    module, inputs = tiny("llama")
    with pytest.raises(InputError, match="block 2"):
        neuron_writes(interp.load(module), inputs["input_ids"][:1], 2, CELL)
