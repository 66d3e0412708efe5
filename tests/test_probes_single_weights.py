import numpy as np
import pytest
import torch
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.errors import InputError
from interp.evaluation import evaluate
from interp.neurons import down_projection
from interp.probes.single_weights import TOGETHER, super_weights
from interp.tasks.items import Item

WEIGHTS = ((0, 3, 7), (0, 5, 9), (1, 5, 2))


@pytest.fixture(scope="module")
def model():
    module, _ = tiny("llama")
    with torch.no_grad():
        down_projection(module, interp.Anatomy.of(module), 0).weight[3, 7] = 40.0
    return interp.load(module, tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def items():
    draw = np.random.default_rng(0)
    rows = [tuple(draw.integers(3, 96, 10).tolist()) for _ in range(4)]
    return [Item(str(n), row, (1, 10)) for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def found(model, items):
    return super_weights(model, WEIGHTS, items, n_controls=3)


def test_every_weight_is_tested_alone_and_all_together(found):
    names = [".".join(map(str, weight)) for weight in WEIGHTS]

    assert found["intervention"].values.tolist() == [*names, TOGETHER]
    assert found["control"].sizes == {"intervention": 4, "draw": 3}
    assert found["control"].notnull().all()


@pytest.mark.parametrize("place", [0, 3])
def test_perplexity_is_that_of_a_model_without_the_weights(model, items, found, place):
    module, _ = tiny("llama")
    module.load_state_dict(model.module.state_dict())
    other = interp.load(module)
    with torch.no_grad():
        for block, channel, neuron in WEIGHTS if place == 3 else WEIGHTS[:1]:
            matrix = down_projection(module, other.anatomy, block).weight
            matrix[channel, neuron] = 0
    nll = float(evaluate(other, items)["nll"].mean())
    base = float(evaluate(model, items)["nll"].mean())

    one = found.isel(intervention=place)
    np.testing.assert_allclose(np.log(one["perplexity"]), nll, rtol=1e-5)
    np.testing.assert_allclose(np.log(one["base_perplexity"]), base, rtol=1e-5)
    np.testing.assert_allclose(one["effect"], nll - base, atol=1e-5)


def test_perplexity_lies_inside_its_interval(found):
    low, high = found["perplexity_interval"].transpose("bound", ...).values

    assert (low <= found["perplexity"]).all()
    assert (found["perplexity"] <= high).all()


def test_controls_are_of_the_same_matrix_and_about_the_same_magnitude(model, found):
    matrix = down_projection(model.module, model.anatomy, 0).weight.detach().abs()
    size, theirs = found["magnitude"], found["control_magnitude"]

    assert size.values[0] == 40
    # The planted weight is far above all others: its controls are the next largest.
    ordered = matrix.flatten().sort(descending=True).values
    least = float(ordered[3 * 16 + len(WEIGHTS)])
    assert (theirs[0] >= least).all()
    assert (abs(theirs[1] - size[1]) < 0.2 * size[1]).all()
    assert (found["control_mean"] != 0).all()


def test_the_model_is_left_alone(model, items, untouched):
    with untouched(model.module):
        super_weights(model, WEIGHTS[:1], items[:1], n_controls=1)


def test_one_weight_has_no_run_together(model, items):
    alone = super_weights(model, WEIGHTS[:1], items[:2], n_controls=1)

    assert alone["intervention"].values.tolist() == ["0.3.7"]


def test_another_seed_draws_other_controls(model, items):
    one = items[:1]
    first, again, other = (
        super_weights(model, WEIGHTS[1:2], one, n_controls=3, seed=seed)
        for seed in (0, 0, 1)
    )

    assert again["control_magnitude"].equals(first["control_magnitude"])
    assert not other["control_magnitude"].equals(first["control_magnitude"])


def test_a_killed_test_goes_on_where_it_stopped(model, items, found, tmp_path):
    out, runs = tmp_path / "runs.jsonl", []
    super_weights(model, WEIGHTS, items, n_controls=3, out=out)
    lines = out.read_text("utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[: len(lines) // 2]), "utf-8")
    again = super_weights(
        model,
        WEIGHTS,
        items,
        n_controls=3,
        out=out,
        progress=lambda done, total: runs.append((done, total)),
    )

    assert again.equals(found)
    assert len(runs) < runs[-1][1]


@pytest.mark.parametrize(
    ("weights", "n_controls", "message"),
    [
        ((), 3, "each once"),
        ((WEIGHTS[0],) * 2, 3, "each once"),
        (WEIGHTS, 0, "n_controls=0"),
        (((0, 3, 99),), 3, "neuron 99"),
        (((4, 3, 9),), 3, "block 4"),
    ],
)
def test_what_cannot_be_tested_is_refused(model, items, weights, n_controls, message):
    with pytest.raises(InputError, match=message):
        super_weights(model, weights, items, n_controls=n_controls)
