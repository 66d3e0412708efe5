import numpy as np
import pytest
import torch
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.errors import InputError
from interp.interventions import mean_activations
from interp.probes.constancy import input_independence

TEXTS = {"a": "w3 w9 w4", "b": "w7 w3 w9 w5 w6", "c": "w50 w51 w9"}
CELLS = [(0, 0, 3), (2, 2, 5)]


@pytest.fixture(scope="module")
def model():
    return interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def found(model):
    return input_independence(model, TEXTS, CELLS)


def test_values_are_those_of_the_stream(model, found):
    with torch.no_grad():
        ids = torch.tensor([[3, 9, 4]])
        states = model.module(ids, output_hidden_states=True).hidden_states

    first = found["value"].sel(text="a", bos="without")
    assert float(first[0]) == states[0][0, 0, 3]
    assert found["value"].dims == ("cell", "bos", "text")
    means = mean_activations(model, TEXTS.values(), CELLS)
    np.testing.assert_allclose(found["mean"].sel(bos="without"), means, rtol=1e-6)


def test_mean_and_spread_are_over_texts(found):
    each = found["value"].values

    np.testing.assert_allclose(found["sd"], each.std(-1, ddof=1))
    np.testing.assert_allclose(found["cv"], each.std(-1, ddof=1) / abs(each.mean(-1)))
    low, high = found["mean_interval"].transpose("bound", ...).values
    assert (low <= found["mean"]).all()
    assert (found["mean"] <= high).all()


def test_with_bos_the_first_token_is_the_same_in_every_text(found):
    first = found.sel(bos="with").isel(cell=0)

    assert first["sd"] == 0
    assert first["cv"] == 0
    assert found["sd"].sel(bos="without").isel(cell=0) > 0


def test_tokens_after_the_cells_do_not_matter(model, found):
    short = input_independence(model, TEXTS, CELLS, max_tokens=3)

    np.testing.assert_allclose(short["value"], found["value"], rtol=1e-5)


def test_without_a_bos_token_there_is_no_value_with_it():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    model = interp.load(tiny("llama")[0], tokenizer=tokenizer)
    found = input_independence(model, list(TEXTS.values()), CELLS)

    assert found["bos"].values.tolist() == ["without"]
    assert found["text"].values.tolist() == ["0", "1", "2"]


def test_progress_counts_the_runs(model):
    told = []
    input_independence(model, TEXTS, CELLS, progress=lambda *each: told.append(each))

    assert told == [("texts", n, 6) for n in range(1, 7)]


@pytest.mark.parametrize(
    ("texts", "cells", "message"),
    [
        (["w3 w4"], CELLS, "1 texts"),
        (["w3 w4", "w5 w6"], [], "0 cells"),
        (["w3 w4", "w5 w6"], [(0, 9, 0)], r"tokens \[9\]"),
        (["w3 w4", "w5 w6"], [(5, 0, 0)], "Layer 5.*to 2"),
        (["w3 w4", "w5 w6"], [(0, 0, 99)], "Channel 99"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, texts, cells, message):
    with pytest.raises(InputError, match=message):
        input_independence(model, texts, cells)
