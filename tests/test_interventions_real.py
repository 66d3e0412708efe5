"""What breaks in a real model when a part is taken out, beside matched controls.

Each test states the published expectation first. Values are of SmolLM2-135M in float32.
"""

from importlib.resources import files

import numpy as np
import pytest

import interp
from interp.heads import HeadSet
from interp.interventions.ablation import AblateHeads
from interp.interventions.activations import SetActivations, mean_activations
from interp.interventions.sweeping import NONE, sweep
from interp.probes import detect
from interp.tasks import Item, Passkey, RepeatedTokens, repeated_random_for
from interp.uncertainty import bootstrap_interval

RETRIEVAL = "L18.H6,L17.H3,L23.H2,L18.H7,L20.H6"
"""The strongest by the retrieval score (arXiv:2404.15574), measured once."""

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def model():
    return interp.load("smollm2-135m")


@pytest.fixture(scope="module")
def ids(model):
    text = files("interp").joinpath("data", "lighthouse.txt").read_text("utf-8")
    return model.tokenizer(text)["input_ids"]


def with_controls(heads, n):
    """The heads, and as many random ones in the same layers, n times."""
    draws = {f"control {i}": heads.random_like(i, overlap=True) for i in range(n)}
    return {"heads": AblateHeads(heads)} | {
        name: AblateHeads(drawn) for name, drawn in draws.items()
    }


def effects(table, metric):
    """Change of each intervention, item by item, and that of the controls' mean."""
    change = table[metric] - table[metric].sel(intervention=NONE)
    controls = [n for n in table["intervention"].values if n.startswith("control")]
    return change.sel(intervention="heads"), change.sel(intervention=controls)


def test_without_induction_heads_nothing_is_copied(model):
    # Olsson et al. 2022: induction heads copy what followed an earlier occurrence.
    task = repeated_random_for(model, block=64)
    trace = interp.trace(model, list(task.ids), capture=task.capture, attrs=task.attrs)
    top = HeadSet.top(detect(trace, ["induction"])["induction"], share=0.05)
    assert len(top) == 14
    items = RepeatedTokens(block=32, copies=4, seeds=(0, 1, 2)).items(model)
    table = sweep(model, with_controls(top, 5), items, kl=False)
    base = float(table["accuracy"].sel(intervention=NONE).mean())
    heads, controls = effects(table, "accuracy")
    gap = bootstrap_interval(heads - controls.mean("intervention"), "item")
    assert base > 0.8
    assert base + float(heads.mean()) < 0.1
    assert base + float(controls.mean()) > 0.5
    assert float(gap.sel(bound="high")) < -0.3
    nll, _ = effects(table, "nll")
    assert float(nll.min()) > 5.0


def test_without_retrieval_heads_the_passkey_is_lost(model):
    # Wu et al. 2024: the top 20 of 1,024 heads masked 94.7 -> 63.6, random ones not.
    heads = HeadSet.parse(RETRIEVAL, model.anatomy)
    items = Passkey(lengths=(512, 1024), depths=(0.2, 0.8), seeds=(0,)).items(model)
    assert {item.labels["length"] for item in items} == {512, 1024}
    table = sweep(model, with_controls(heads, 4), items, kl=False)
    exact = table["exact"].groupby("length").mean()
    assert (exact.sel(intervention=NONE) >= 0.9).all()
    assert (exact.sel(intervention="heads") <= 0.1).all()
    lost, kept = effects(table, "exact")
    assert float(kept.mean()) > -0.2
    gap = bootstrap_interval(lost - kept.mean("intervention"), "item")
    assert float(gap.sel(bound="high")) < -0.7


def test_massive_activations_are_a_bias_that_the_model_needs(model, ids):
    # Sun et al. 2024: set to zero WikiText perplexity goes 5.47 -> infinity, set to
    # their mean 5.47 -> 5.47, other cells of that size nothing.
    cell = ((12, 0, 507),)
    mean = mean_activations(
        model, [ids[k : k + 64] for k in range(600, 1600, 100)], cell
    )
    assert 15_000 < mean[0] < 30_000
    items = [
        Item(f"text {k}", tuple(ids[k : k + 192]), (1, 192)) for k in (0, 200, 400)
    ]
    changes = {
        "zero": SetActivations(cell),
        "mean": SetActivations(cell, mean),
        "other cell": SetActivations(((12, 5, 507),)),
    }
    nll = sweep(model, changes, items, kl=False)["nll"]
    base = nll.sel(intervention=NONE)
    ratio = np.exp(nll - base)
    low = bootstrap_interval(ratio, "item").sel(bound="low")
    assert float(low.sel(intervention="zero")) > 100
    assert (abs(ratio.sel(intervention="mean") - 1) < 0.02).all()
    assert (abs(ratio.sel(intervention="other cell") - 1) < 0.01).all()
