"""A massive activation planted in a random model, and the neurons that are blamed."""

import pandas as pd
import pytest
import torch
from tiny_models import tiny

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.neurons import down_projection
from interp.probes.activations import MassiveActivations
from interp.probes.contributions import neuron_writes
from interp.probes.writing import COLUMNS, candidates, writers

CHANNEL, NEURON, TOKEN = 7, 11, 4


@pytest.fixture(scope="module")
def planted():
    """A model whose block 0 writes 3000 to the cell, and block 1 takes it back."""
    module, inputs = tiny("llama")
    model, ids = interp.load(module), inputs["input_ids"][:1]
    for block, value in enumerate((3000, -3000)):
        told = neuron_writes(model, ids, block, (TOKEN, CHANNEL))
        matrix = down_projection(module, model.anatomy, block).weight
        with torch.no_grad():
            active = told["activation"].values[NEURON]
            matrix[CHANNEL, NEURON] = value / active
    return model, ids


def test_the_planted_neuron_is_the_writer(planted):
    model, ids = planted
    table = writers(model, ids, criterion=MassiveActivations(ratio=200))
    own = table[(table["token"] == TOKEN) & (table["channel"] == CHANNEL)]
    writer = own[own["role"] == "writer"].iloc[0]

    assert tuple(table.columns) == COLUMNS
    assert (writer["block"], writer["half"], writer["neuron"]) == (0, "mlp", NEURON)
    assert (writer["first_layer"], writer["weight_rank"]) == (1, 1)
    assert writer["share"] == pytest.approx(1, abs=0.01)
    assert writer["peak"] == pytest.approx(3000, rel=0.01)
    assert writer["contribution"] == pytest.approx(3000, rel=0.01)


def test_the_neuron_that_takes_it_back_is_the_eraser(planted):
    model, ids = planted
    table = writers(model, ids, criterion=MassiveActivations(ratio=200), top=2)
    own = table[(table["token"] == TOKEN) & (table["channel"] == CHANNEL)]
    eraser = own[own["role"] == "eraser"]

    assert list(own["role"]) == ["writer"] * 2 + ["eraser"] * 2
    assert (eraser.iloc[0]["block"], eraser.iloc[0]["neuron"]) == (1, NEURON)
    assert eraser.iloc[0]["share"] > 0.9
    assert (eraser["contribution"].abs().diff().dropna() <= 0).all()


def test_candidates_are_the_large_weights_that_write_much(planted):
    model, ids = planted
    found = candidates(writers(model, ids, criterion=MassiveActivations(ratio=200)))

    assert (0, CHANNEL, NEURON) in found
    assert (1, CHANNEL, NEURON) not in found  # it erases


def test_a_candidate_is_named_once():
    row = {"role": "writer", "block": 1, "channel": 2, "neuron": 3, "share": 0.5}
    table = pd.DataFrame([row | {"weight_rank": 1}] * 2 + [row | {"weight_rank": 11}])

    assert candidates(table) == ((1, 2, 3),)
    assert candidates(table, share=0.6) == ()


def test_attention_that_writes_has_no_neurons():
    module, inputs = tiny("llama")
    ids = inputs["input_ids"][:1]
    with torch.no_grad():
        module.model.layers[0].self_attn.o_proj.weight[CHANNEL] *= 5e4
    table = writers(interp.load(module), ids)

    rows = table[(table["channel"] == CHANNEL) & (table["first_layer"] == 1)]
    rows = rows[rows["role"] == "writer"]
    assert len(rows) > 0
    assert (rows["half"] == "attention").all()
    assert rows["neuron"].isna().all()
    assert candidates(rows) == ()


def test_without_massive_activations_the_table_is_empty():
    module, inputs = tiny("llama")
    table = writers(interp.load(module), inputs["input_ids"][:1])

    assert table.empty
    assert tuple(table.columns) == COLUMNS
    assert candidates(table) == ()


def test_experts_that_write_are_refused():
    module, inputs = tiny("gpt_oss")
    with torch.no_grad():
        module.model.layers[0].mlp.experts.down_proj_bias[..., CHANNEL] += 1e5
    with pytest.raises(UnsupportedModelError, match="router"):
        writers(interp.load(module), inputs["input_ids"][:1])


def test_several_texts_are_refused():
    module, inputs = tiny("llama")
    with pytest.raises(InputError, match="got 2 texts"):
        writers(interp.load(module), inputs["input_ids"])
