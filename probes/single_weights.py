"""Super weights: single weights without which a model breaks, and their controls."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.interventions.effects import paired_effects
from interp.interventions.sweeping import Progress, sweep
from interp.interventions.weights import Weight, ZeroWeights
from interp.neurons import down_projection
from interp.probes.reading import Bootstrap
from interp.tasks.items import Item

if TYPE_CHECKING:
    from interp.models import Model

N_CONTROLS = 8
"""Random controls of each weight."""

NEIGHBORS = 16
"""Weights of nearest magnitude, for each control, of which the controls are drawn."""

TOGETHER = "together"
"""Name of the run without any of the weights."""


def super_weights(
    model: "Model",
    weights: Sequence[Weight],
    items: Sequence[Item],
    *,
    n_controls: int = N_CONTROLS,
    seed: int = 0,
    bootstrap: Bootstrap | None = None,
    out: Path | str | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> xr.Dataset:
    """What a model's predictions lose without single weights of down projections.

    Each weight is set to zero alone, and all together where there are several. Its
    controls are weights of the same matrix and of about the same magnitude, drawn at
    random and set to zero one at a time; as many at a time where all are together.

    Args:
        model: A decoder-only language model; left as it is.
        weights: Block, channel and neuron of each, such as
            `interp.probes.writing.candidates` names.
        items: Of one task, such as `Texts(max_tokens=256).items(model)`.
        n_controls: Random controls of each.
        seed: Of their draw.
        bootstrap: How intervals over items are made.
        out: File that grows by a line a run; a killed run goes on from there.
        resume: Go on with `out`; False starts anew.
        progress: Called with the runs done and the runs in all.

    Returns:
        What `interp.interventions.effects.paired_effects` tells of the mean negative
        log-likelihood per token, over `intervention`: each weight, "11.507.1229" for
        block, channel and neuron, then "together". Besides, `perplexity`, and
        `perplexity_interval` (bound), `base_perplexity`, `control_perplexity` (draw):
        exp of the means over items; `magnitude` of the weight, the mean of several, and
        `control_magnitude` (draw).

    Raises:
        InputError: No weight, one that is named twice or that the model has not, or
            no control.
        UnsupportedModelError: A block has no single down projection, or the model is
            no decoder-only language model.
        StorageError: `out` holds other runs, or is damaged.

    Source:
        arXiv:2411.07191. Zeroing, and random weights as controls, are theirs; that
        these have the same magnitude is ours.
    """
    named: dict[str, tuple[Weight, ...]]
    named = {".".join(map(str, weight)): (weight,) for weight in weights}
    if not named or len(named) < len(weights) or n_controls < 1:
        raise InputError(
            f"Weights were to be tested, each once, with random controls; got "
            f"{list(weights)} and n_controls={n_controls}. Take the weights from "
            f"interp.probes.writing.candidates; the usual number is {N_CONTROLS}."
        )
    if len(named) > 1:
        named[TOGETHER] = tuple(weights)
    rng = np.random.default_rng(seed)
    drawn = {each: _controls(model, each, weights, n_controls, rng) for each in weights}
    tested, controls = dict(named), {}
    for name, own in named.items():
        # One control of all together is one control of each.
        sets = zip(*(drawn[weight] for weight in own), strict=True)
        own_controls = {f"{name} control {n}": each for n, each in enumerate(sets)}
        controls[name] = list(own_controls)
        tested |= own_controls
    runs = {
        name: ZeroWeights(tuple(dict.fromkeys(own))) for name, own in tested.items()
    }
    table = sweep(
        model, runs, items, out=out, resume=resume, kl=False, progress=progress
    )
    how = bootstrap or Bootstrap()
    options = {"level": how.level, "resamples": how.resamples, "seed": how.seed}
    found = paired_effects(table, "nll", controls, **options)
    scores = table["nll"].sel(intervention=list(named)).astype("float64")
    scores = scores.drop_vars(set(scores.coords) - {"intervention"})
    perplexities = {
        "perplexity": found["score"],
        "perplexity_interval": how.interval(scores, "item"),
        "base_perplexity": found["base"],
        "control_perplexity": found["base"] + found["control"],
    }
    attrs = {"units": "perplexity", "long_name": "exp of the mean nll"}
    for name, nll in perplexities.items():
        found[name] = xr.ufuncs.exp(nll).assign_attrs(attrs)
    sizes = {name: _magnitude(model, own) for name, own in tested.items()}
    attrs = {"units": "weight", "long_name": "magnitude"}
    of_controls = [[sizes[each] for each in controls[name]] for name in named]
    found["magnitude"] = "intervention", [sizes[name] for name in named], attrs
    found["control_magnitude"] = ("intervention", "draw"), of_controls, attrs
    return found.assign_attrs(seed_of_controls=seed)


def _magnitude(model: "Model", weights: Sequence[Weight]) -> float:
    """Mean magnitude of some weights."""
    sizes = []
    for block, channel, neuron in weights:
        matrix = down_projection(model.module, model.anatomy, block).weight
        sizes.append(float(matrix.detach()[channel, neuron].abs()))
    return float(np.mean(sizes))


def _controls(
    model: "Model",
    weight: Weight,
    tested: Sequence[Weight],
    n_controls: int,
    rng: np.random.Generator,
) -> list[Weight]:
    """Random weights of the same matrix, of those nearest in magnitude to one."""
    block, channel, neuron = weight
    projection = down_projection(model.module, model.anatomy, block)
    projection.require(channel, neuron)
    matrix = projection.weight.detach()
    gap = (matrix.abs() - matrix[channel, neuron].abs()).abs().float()
    n_near = min(NEIGHBORS * n_controls + len(tested), gap.numel())
    nearest = gap.flatten().topk(n_near, largest=False).indices.tolist()
    found = [(block, *divmod(place, matrix.shape[1])) for place in nearest]
    others = [each for each in found if each not in tested]
    chosen = rng.choice(len(others), size=n_controls, replace=False)
    return [others[index] for index in chosen]
