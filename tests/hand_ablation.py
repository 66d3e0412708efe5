"""An ablation from tables made by hand: what a real one holds, and hostile names."""

import json

import numpy as np
import xarray as xr
from hand_atlas import HOSTILE
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.app.controls import Controls
from interp.app.plan import Plan
from interp.app.results import ablation_tree
from interp.evaluation import attrs_of
from interp.heads import HeadSet
from interp.tasks import Passkey, Task, Texts

HARM = HOSTILE[27] + HOSTILE[5]
"""A name that wants out of its tag."""


def hand_ablation(
    *,
    can: bool = True,
    n_controls: int = 3,
    modes: tuple = ("zero", "mean"),
    n_items: int = 6,
    name: str = "passkey",
) -> xr.DataTree:
    """Texts, and a passkey task that the model can or cannot do, on a tiny model."""
    model = interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())
    heads = HeadSet.parse("L0.H1,L1.H2", model.anatomy)
    plan = Plan(model, heads, Controls.of(heads, None, 0), modes, 0)
    controls = {mode: plan.controls_of[mode][:n_controls] for mode in modes}
    names = ["none", *(n for mode in modes for n in (mode, *controls[mode]))]
    tasks: dict[str, Task] = {
        "nll": Texts({"words": "w1 w2 w3"}),
        name: Passkey(name=name),
    }
    tables = {
        "nll": _table(names, n_items, nll=3.0, drop=0.5),
        name: _table(names, n_items, exact=float(can), drop=-0.9, grid=True),
    }
    tree = ablation_tree(model, tasks, tables, controls, seed=0)
    values = xr.DataArray(
        np.random.default_rng(0).random((2, 4)),
        dims=("layer", "head"),
        name="induction",
        attrs={"units": "fraction", "long_name": "Induction attention"},
    )
    tree["heads"] = xr.DataTree(plan.head_maps(values))
    tree.attrs = {
        "model": "smollm2-135m",
        "model_hash": "9f3c1be2" * 8,
        "heads": str(heads),
        "chosen": "the 5 % of heads with the highest induction",
        "groups": 0,
        "modes": json.dumps(modes),
        "n_controls": n_controls,
        "seed": 0,
        "versions": json.dumps({"torch": "2.13.0"}),
        "skipped": json.dumps([{"what": "controls", "why": "too <i>few</i>"}]),
        "command": "interp ablate smollm2-135m --top induction:5%",
    }
    return tree


def _table(names, n_items, *, drop, grid=False, **metrics) -> xr.Dataset:
    """A sweep's table in which the treatments, not their controls, move a metric."""
    rng = np.random.default_rng(0)
    (metric, level), *_ = metrics.items()
    values = level + 0.01 * rng.random((len(names), n_items))
    if metric == "exact":
        values = np.full((len(names), n_items), level)
    for row, name in enumerate(names):
        if name != "none" and "control" not in name:
            values[row] = np.clip(values[0] + drop, 0, None)
    kl = np.abs(values - values[0])
    dims = ("intervention", "item")
    labels = {}
    if grid:
        labels["length"] = ("item", [512 * (1 + n % 2) for n in range(n_items)])
        labels["depth"] = (
            "item",
            [round(0.1 + 0.4 * (n // 2), 1) for n in range(n_items)],
        )
    return xr.Dataset(
        {metric: (dims, values, attrs_of(metric)), "kl": (dims, kl, attrs_of("kl"))},
        {
            "intervention": np.array(names, dtype=object),
            "item": np.array([f"i{n}" for n in range(n_items)], dtype=object),
            **labels,
        },
    )
