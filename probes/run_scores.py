"""Scores of several runs as one labelled result: each run, the mean, its interval."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.heads import HeadGrid
from interp.probes.detector import HEADS
from interp.probes.experiment import Experiment
from interp.probes.reading import Bootstrap

if TYPE_CHECKING:
    from interp.models import Model


def run_scores(
    model: "Model",
    name: str,
    scores: Sequence[Sequence[Sequence[float]]],
    runs: Iterable[str],
    labels: Mapping[str, Any],
) -> xr.DataArray:
    """Scores of self-attention heads, run by run.

    Args:
        model: Whose heads they are.
        name: Of the experiment.
        scores: Of each run, layer and head.
        runs: Names of the runs.
        labels: What else is known of each run, along the runs as `<name>_<label>`: a
            result may hold other experiments' runs too.

    Returns:
        (`<name>_run`, layer, head); NaN for heads that a layer lacks.
    """
    sites, grid, dim = (
        model.anatomy.at("self"),
        HeadGrid.of(model.anatomy),
        f"{name}_run",
    )
    there = np.array([np.arange(grid.n_heads) < site.n_heads for site in sites])
    values = np.where(there, np.array(scores, dtype=float), np.nan)
    along = {f"{name}_{label}": (dim, each) for label, each in labels.items()}
    coords: dict[str, Any] = {
        dim: strings(runs),
        **along,
        "layer": [site.layer for site in sites],
        "head": np.arange(grid.n_heads),
        "kv_head": ("head", np.arange(grid.n_heads) // grid.group),
    }
    return xr.DataArray(values, dims=(dim, *HEADS), coords=coords)


def summarized(
    experiment: Experiment,
    runs: xr.DataArray,
    what: str,
    bootstrap: Bootstrap | None,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """What an experiment returns: the mean over runs, its interval, and the runs.

    Args:
        experiment: Gives name and unit.
        runs: As `run_scores` gives them; NaN runs do not count.
        what: What the runs are, for the record, such as "12 items".
        bootstrap: How intervals are made.
        attrs: Of the result and its mean.
    """
    name, title = experiment.name, experiment.long_name
    dim, bootstrap = f"{name}_run", bootstrap or Bootstrap()
    units, how = {"units": experiment.unit}, bootstrap.says(what)
    mean = experiment.labelled(runs.mean(dim))
    bounds = bootstrap.interval(runs, dim)
    found = {
        name: mean.assign_attrs(attrs, interval=how),
        f"{name}_interval": bounds.assign_attrs(
            units, long_name=f"{title}, interval", interval=how
        ),
        f"{name}_runs": runs.assign_attrs(units, long_name=f"{title}, of each run"),
    }
    return xr.Dataset(found, attrs=attrs)


def strings(names: Iterable[str]) -> np.ndarray:
    """As objects: Zarr has no stable type of fixed-length strings."""
    return np.array(list(names), dtype=object)
