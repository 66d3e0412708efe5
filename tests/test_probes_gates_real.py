"""Which KV heads of a trained model have to see everything, and what happens if not."""

from functools import cache

import numpy as np
import pytest

import interp
from interp.evaluation import evaluate
from interp.heads import HeadGrid, HeadSet
from interp.interventions.local import LocalHeads
from interp.probes.detecting import detect
from interp.probes.gate_patterns import full_heads
from interp.probes.gates import Gates
from interp.probes.groups import razor_groups
from interp.tasks import Passkey, repeated_random_for

pytestmark = [pytest.mark.real, pytest.mark.slow]

GATES = Gates(lengths=(96,), steps=5)


@cache
def model():
    return interp.load("smollm2-135m")


@cache
def trained():
    return GATES.run(model())


@cache
def razor():
    task = repeated_random_for(model(), block=96)
    trace = interp.trace(
        model(), list(task.ids), capture=task.capture, attrs=task.attrs
    )
    return razor_groups(detect(trace, ["induction", "echo"]))


def test_passkeys_are_recalled_by_the_half_that_gates_keep_and_by_no_other():
    full = full_heads(trained()["gates"], 0.5)
    local = HeadSet.of(HeadGrid.of(model().anatomy), model().anatomy) - full
    items = Passkey(lengths=(256,), depths=(0.2, 0.5, 0.8), seeds=(0,)).items(model())

    def recall(heads):
        with LocalHeads(heads, recent=GATES.recent, first=GATES.first)(model()):
            return evaluate(model(), items).mean("item")

    kept, lost = recall(local), recall(full)
    assert len(full) == len(local)
    assert kept["exact"] == 1
    assert lost["exact"] == 0
    assert lost["accuracy"] < 0.5 < kept["accuracy"]


def test_training_brings_gates_apart():
    found = trained()

    assert found["gates_loss"][0, 0] == 0 < found["gates_loss"][0, -1]
    assert (np.diff(found["gates_penalty"][0]) < 0).all()
    assert 0.1 < float(found["gates_kv"].min()) < 0.9 < float(found["gates_kv"].max())


def test_echo_and_induction_name_14_groups():
    groups = razor().kv_heads

    assert len(groups) == 14
    assert groups[-1] == (14, 1)  # the one that echo adds
    assert all(17 <= layer <= 24 for layer, _ in groups[:-1])


def test_gates_of_the_groups_that_repeat_are_higher():
    gates = trained()["gates_kv"].values
    chosen = [gates[group] for group in razor().kv_heads]

    assert np.mean(chosen) > gates.mean() + gates.std() / 2
