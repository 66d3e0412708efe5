"""What interventions did to a metric: against the untouched model, and controls."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.interventions.sweeping import NONE
from interp.significance import holm, sign_flip_p
from interp.uncertainty import LEVEL, RESAMPLES, bootstrap_interval

ROUNDING = 1e-6
"""Relative change that is none: logits have 24 bits."""

ONE_SIDED = ("kl", "agreement")
"""Metrics against the untouched model itself: no item can change to the better."""


def paired_effects(
    table: xr.Dataset,
    metric: str,
    controls: Mapping[str, Sequence[str]] | None = None,
    *,
    interpretable: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> xr.Dataset:
    """Effect of each treatment on a metric, with intervals, controls and p-values.

    An effect is the mean over items of the metric with the treatment minus that of the
    untouched model on the same item. Every intervention of the table that is nobody's
    control is a treatment.

    Args:
        table: From `sweep`, over (intervention, item).
        metric: One of its variables.
        controls: By treatment, the interventions that are its random controls.
        interpretable: Whether the untouched model can do the task, as
            `beats_chance` tells; kept beside the numbers.
        level: Share of resampled means inside an interval.
        resamples: Of the bootstrap.
        seed: Of the resamples and the signs.

    Returns:
        Over `intervention`, in the metric's unit: `effect`, `effect_interval` (bound);
        `score`, the treated model's mean; `base` and `base_interval`, the untouched
        model's; `control` (draw), each control's effect, and `control_mean`,
        `control_low`, `control_high`, their mean and range. Without unit: `p`, of
        signs flipped over items; `p_holm`, corrected over all treatments; `p_control`,
        the treatment's place among its controls; `n_items`, `n_controls`,
        `interpretable`. NaN where something was not measured, and for `p` of the
        metrics that compare with the untouched model, which have no sign to flip.

    Raises:
        InputError: No such metric or intervention, or nothing to test.

    Source:
        Percentile bootstrap: Efron 1979. Signs: Fisher 1935, section 21. Ranks among
        random controls: Phipson and Smyth 2010. Correction: Holm 1979.
    """
    controls = {name: list(drawn) for name, drawn in (controls or {}).items()}
    treatments = _treatments(table, metric, controls)
    options = {"level": level, "resamples": resamples, "seed": seed}
    values = table[metric].astype(np.float64)
    values = values.drop_vars(set(values.coords) - {"intervention"})
    base = values.sel(intervention=NONE, drop=True)
    changes = values - base
    changes = changes.where(
        abs(changes) > ROUNDING * abs(base).clip(min=1), 0 * changes
    )
    own = changes.sel(intervention=treatments)
    effect, drawn = own.mean("item"), _drawn(changes.mean("item"), treatments, controls)
    everywhere = xr.ones_like(effect)
    result = {
        "effect": effect,
        "effect_interval": bootstrap_interval(own, "item", **options),
        "score": values.sel(intervention=treatments).mean("item"),
        "base": everywhere * base.mean("item"),
        "base_interval": everywhere * bootstrap_interval(base, "item", **options),
        "control": drawn,
        "control_mean": drawn.mean("draw"),
        "control_low": drawn.min("draw"),
        "control_high": drawn.max("draw"),
    }
    units, long_name = (table[metric].attrs.get(a, "") for a in ("units", "long_name"))
    n_controls = drawn.notnull().sum("draw")
    # Rounding must not decide between equals.
    as_far = (abs(drawn) >= abs(effect) * (1 - 1e-12)).sum("draw")
    p = sign_flip_p(own, "item", seed=seed)
    p = p.where(metric not in ONE_SIDED)
    result = {name: array.assign_attrs(units=units) for name, array in result.items()}
    result |= {
        "p": p,
        "p_holm": holm(p),
        "p_control": ((1 + as_far) / (1 + n_controls)).where(n_controls > 0),
        "n_items": own.notnull().sum("item"),
        "n_controls": n_controls,
        "interpretable": xr.full_like(effect, interpretable, dtype=bool),
    }
    return xr.Dataset(
        {
            name: array.assign_attrs(long_name=_LONG[name])
            for name, array in result.items()
        },
        attrs={"metric": metric, "units": units, "long_name": long_name, **options}
        | {"method": _METHOD, "source": _SOURCE},
    )


def holm_together(results: Iterable[xr.Dataset]) -> list[xr.Dataset]:
    """Several results of `paired_effects` with `p_holm` corrected over all of them.

    Args:
        results: Of different metrics or tasks, read as one family of tests.
    """
    results = list(results)
    if not results:
        return []
    p = np.concatenate([np.atleast_1d(each["p"].values) for each in results])
    ends = np.cumsum([each["p"].size for each in results])
    parts = np.split(holm(xr.DataArray(p)).values, ends[:-1])
    return [
        each.assign(p_holm=each["p_holm"].copy(data=part))
        for each, part in zip(results, parts, strict=True)
    ]


def beats_chance(
    table: xr.Dataset,
    metric: str,
    chance: float,
    *,
    is_better_high: bool,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> bool:
    """Whether the untouched model is surely better at a task than a guess.

    Its interval has to lie beyond chance on the better side; with a single item, which
    has no interval, its score. Where it does not, nothing can be lost, and an ablation
    of the task says nothing.

    Args:
        table: From `sweep`.
        metric: What the task is judged by.
        chance: Value that a guess gives, as `task.chance(model)`.
        is_better_high: Whether a better model has a higher value.
        level: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the resamples.

    Raises:
        InputError: The table has no such metric.
    """
    _require(table, metric)
    base = table[metric].astype(np.float64).sel(intervention=NONE, drop=True)
    bounds = bootstrap_interval(
        base, "item", level=level, resamples=resamples, seed=seed
    ).fillna(base.mean("item"))
    low, high = bounds.values.tolist()
    return low > chance if is_better_high else high < chance


_LONG = {
    "effect": "change against the untouched model",
    "effect_interval": "change, interval",
    "score": "value with the intervention",
    "base": "value of the untouched model",
    "base_interval": "value of the untouched model, interval",
    "control": "change of each random control",
    "control_mean": "change of random controls, mean",
    "control_low": "change of random controls, smallest",
    "control_high": "change of random controls, largest",
    "p": "p of signs flipped over items",
    "p_holm": "p, Holm-corrected",
    "p_control": "p against random controls",
    "n_items": "items",
    "n_controls": "random controls",
    "interpretable": "whether the untouched model can do the task",
}
_SOURCE = (
    "Efron 1979 (bootstrap); Fisher 1935 (signs); Phipson and Smyth 2010 (random "
    "controls); Holm 1979 (correction)"
)
_METHOD = "mean over items of the difference to the untouched model on the same item"


def _treatments(
    table: xr.Dataset, metric: str, controls: Mapping[str, Sequence[str]]
) -> list[str]:
    """What is tested; refuses names that the table does not hold."""
    _require(table, metric)
    names = [str(name) for name in table["intervention"].values]
    drawn = {name for own in controls.values() for name in own}
    unknown = [name for name in (*controls, *sorted(drawn)) if name not in names]
    if unknown:
        raise InputError(
            f"Effects were asked for with {unknown[0]!r}; the table holds "
            f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}. Name "
            "treatments and controls as in the sweep."
        )
    treatments = [name for name in names if name != NONE and name not in drawn]
    if not treatments:
        raise InputError(
            "Effects need a treatment; every intervention of the table is a control. "
            "Sweep at least one that is not."
        )
    return treatments


def _require(table: xr.Dataset, metric: str) -> None:
    if metric not in table.data_vars or NONE not in table["intervention"].values:
        raise InputError(
            f"Effects on {metric!r} need a table of `sweep` that holds it, with the "
            f"untouched model {NONE!r}; got {', '.join(map(str, table.data_vars))}. "
            "Choose one of these."
        )


def _drawn(
    means: xr.DataArray, treatments: list[str], controls: Mapping[str, Sequence[str]]
) -> xr.DataArray:
    """Effect of each control, over (intervention, draw), NaN where there are fewer."""
    most = max(1, *map(len, controls.values())) if controls else 1
    drawn = np.full((len(treatments), most), np.nan)
    for row, name in enumerate(treatments):
        own = list(controls.get(name, ()))
        drawn[row, : len(own)] = means.sel(intervention=own).values
    return xr.DataArray(
        drawn,
        dims=("intervention", "draw"),
        coords={"intervention": np.array(treatments, dtype=object)},
    )
