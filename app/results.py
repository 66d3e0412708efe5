"""What sweeps of several tasks found, as one labelled tree and as one table."""

import json
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import xarray as xr

from interp.interventions.effects import beats_chance, holm_together, paired_effects
from interp.models import Model
from interp.tasks import Task
from interp.viz.ablation import effects_of, tasks

BEFORE, AFTER = "before", "after"
"""Asked for in the command, or looked at afterwards."""

COLUMNS = (
    *("task", "intervention", "metric", "asked", "units"),
    *("base", "base_low", "base_high", "score", "effect", "low", "high"),
    *("p", "p_holm", "control_mean", "control_low", "control_high", "p_control"),
    *("n_items", "n_controls", "interpretable"),
)


def ablation_tree(
    model: Model,
    asked: Mapping[str, Task],
    tables: Mapping[str, xr.Dataset],
    controls: Mapping[str, Sequence[str]],
    *,
    seed: int,
) -> xr.DataTree:
    """Items and effects of every task.

    The metric that a task is judged by was asked for before; those of all tasks are
    corrected together. All other metrics are corrected among themselves.

    Args:
        model: What was swept.
        asked: The tasks, by name.
        tables: From `sweep`, by task.
        controls: By treatment, its controls.
        seed: Of intervals and signs.

    Returns:
        A node `task_0`, `task_1`, ... for each task, with the sweep's table as `items`
        and the effects on each metric below `effects`.
    """
    found: dict[tuple[str, str], xr.Dataset] = {}
    attrs = {}
    for name, task in asked.items():
        chance, is_better_high = task.chance(model), task.is_better_high
        can = beats_chance(
            tables[name],
            task.metric,
            chance,
            is_better_high=is_better_high,
            seed=seed,
        )
        attrs[name] = {
            "name": name,
            "metric": task.metric,
            "chance": chance,
            "is_better_high": int(is_better_high),
            "interpretable": int(can),
            "knobs": json.dumps(task.attrs),
        }
        for metric in map(str, tables[name].data_vars):
            when = BEFORE if metric == task.metric else AFTER
            effects = paired_effects(
                tables[name], metric, controls, interpretable=can, seed=seed
            )
            found[name, metric] = effects.assign_attrs(asked=when)
    for when in (BEFORE, AFTER):
        family = [key for key, each in found.items() if each.attrs["asked"] == when]
        found |= zip(family, holm_together(found[k] for k in family), strict=True)
    nodes = {}
    for number, name in enumerate(asked):
        nodes[f"/task_{number}"] = xr.Dataset(attrs=attrs[name])
        nodes[f"/task_{number}/items"] = tables[name]
        for (owner, metric), effects in found.items():
            if owner == name:
                nodes[f"/task_{number}/effects/{metric}"] = effects
    return xr.DataTree.from_dict(nodes)


def to_table(tree: xr.DataTree) -> pd.DataFrame:
    """A row for each task, treatment and metric; what was asked before comes first."""
    rows = sorted(_rows(tree), key=lambda row: row["asked"] != BEFORE)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(tree: xr.DataTree) -> Iterator[dict[str, object]]:
    for _, task in tasks(tree):
        for effects in effects_of(task):
            for treatment in effects["intervention"].values:
                one = effects.sel(intervention=treatment)
                bounds = {
                    f"{prefix}{bound}": one[of].sel(bound=bound).item()
                    for prefix, of in (("base_", "base_interval"), ("", _INTERVAL))
                    for bound in ("low", "high")
                }
                values = {c: one[c].item() for c in COLUMNS if c in one.data_vars}
                yield {
                    "task": task.attrs["name"],
                    "intervention": treatment,
                    "metric": one.attrs["metric"],
                    "asked": one.attrs["asked"],
                    "units": one.attrs["units"],
                    **values,
                    **bounds,
                }


_INTERVAL = "effect_interval"
