"""Mass on what a cache of first and recent tokens drops."""

import hand_traces as hand
import numpy as np
import pytest
import torch
from tiny_models import tiny
from tolerance import assert_as_precise

import interp
from interp.capture import Capture
from interp.errors import NotCapturedError
from interp.kernels.definitions import Pattern
from interp.probes.middle import MiddleMass

N, FIRST, WINDOW = 12, 2, 3


def measured(weights, **options):
    node = hand.site(weights, local_window=WINDOW, first=FIRST, **options)
    return MiddleMass(FIRST, WINDOW)(hand.trace(self=node))


def between(weights):
    """Mass on keys that are neither, mean over the queries that have such keys."""
    query, key = torch.arange(N)[:, None], torch.arange(N)
    middle = (key >= FIRST) & (query - key >= WINDOW)
    rows = (torch.as_tensor(weights) * middle).sum(-1)
    return rows[..., middle.any(-1)].mean(-1)


def test_a_head_that_looks_at_all_alike():
    # Query 5 sees 6 keys, one of them between; query 11 sees 12, 7 of them.
    wanted = np.mean([(i - 4) / (i + 1) for i in range(5, N)])
    assert float(measured(hand.uniform(N))[0, 0]) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_mass_between_of_rows_that_have_any(seed):
    weights = hand.random_weights(seed, n_tokens=N)
    np.testing.assert_allclose(measured(weights), between(weights), rtol=1e-6)


def test_what_a_learned_sink_takes_is_on_no_key():
    weights = 0.6 * hand.random_weights(0, n_tokens=N)
    np.testing.assert_allclose(measured(weights), between(weights), rtol=1e-5)


@pytest.mark.parametrize(("target", "wanted"), [(0, 0.0), (FIRST, 1.0)])
def test_a_head_that_looks_at_one_key(target, wanted):
    targets = [min(target, i) for i in range(N)]
    weights = hand.pointing(targets)[None, None]
    assert float(measured(weights)[0, 0]) == pytest.approx(wanted)


def test_a_window_that_hides_all_between_leaves_0():
    weights = hand.random_weights(1, n_tokens=N)
    back = np.arange(N)[:, None] - np.arange(N)
    weights = np.where(back < WINDOW, weights, 0)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(measured(weights, window=[WINDOW, WINDOW]), 0, atol=1e-6)


def test_a_text_without_anything_between_has_no_value():
    assert measured(hand.uniform(FIRST + WINDOW)).isnull().all()


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma3"])
def test_a_traced_model_has_the_mass_of_its_maps(name):
    module, inputs = tiny(name)
    detector = MiddleMass(FIRST, WINDOW)
    capture = detector.needs | Capture((Pattern(),), None, residual=False)
    trace = interp.trace(module, inputs["input_ids"][0].tolist(), capture=capture)
    maps = torch.from_numpy(trace["self"]["pattern"].values).nan_to_num(0.0)
    ours = torch.from_numpy(detector(trace).values).float()
    # What is left of 1 has the error of a row's sum.
    rows = maps.sum(-1) + torch.from_numpy(trace["self"]["learned_sink"].values)
    assert_as_precise(
        ours, between(maps.double()), elsewhere=float((rows - 1).abs().max())
    )


def test_an_encoder_is_refused():
    module, inputs = tiny("bert")
    trace = interp.trace(
        module, inputs["input_ids"][0].tolist(), capture=MiddleMass().needs
    )
    with pytest.raises(NotCapturedError, match="all keys ahead would count as near"):
        MiddleMass()(trace)
