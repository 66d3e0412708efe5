"""What ablations would do, to first order: one forward and one backward for all."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch import Tensor

from interp.errors import InputError
from interp.evaluation import check, forward
from interp.heads import HeadGrid
from interp.interventions.prefix import twin
from interp.interventions.sweeping import NONE, Progress, single_heads, sweep
from interp.models import Model
from interp.tap import Visit, tap
from interp.tasks.items import Item
from interp.uncertainty import BOUNDS

SAMPLE = 30
"""Heads that are ablated in truth, to see how well the estimate ranks them."""


def screen(
    model: Model, items: Sequence[Item], reference: xr.DataArray | None = None
) -> xr.DataArray:
    """First-order estimate of what ablating each head alone adds to the NLL.

    For each head the sum over tokens of gradient * (replacement - output), where the
    output is what the head gives to the output projection. The loss bends, so check
    the ranking with `rank_agreement` before relying on it.

    Args:
        model: A decoder-only language model.
        items: Averaged over.
        reference: `(layer, head, d_value)`, what a mean ablation puts in place; zeros
            if None.

    Returns:
        `(layer, head)`, nats a scored token.

    Raises:
        InputError: There is no item.
        UnsupportedModelError: The model's attention cannot be reached.

    Source: attribution patching (Syed et al. 2023, arXiv:2310.10348).
    """
    if not items:
        raise InputError("Heads are screened on items; got none. Take some of a task.")
    for item in items:
        check(model, item)
    own, grid = twin(model), HeadGrid.of(model.anatomy)
    total = np.zeros((grid.n_layers, grid.n_heads))
    for item in items:
        total += _of_item(own, item, reference, total.shape)
    coords = {
        "layer": np.arange(grid.n_layers),
        "head": np.arange(grid.n_heads),
        "kv_head": ("head", np.arange(grid.n_heads) // grid.group),
    }
    attrs = {"units": "nats", "long_name": "first-order estimate of the change of NLL"}
    attrs |= {"source": "arXiv:2310.10348", "site": grid.site}
    estimate = total / len(items)
    return xr.DataArray(estimate, coords, ("layer", "head"), attrs=attrs)


def _of_item(
    own: Model, item: Item, reference: xr.DataArray | None, shape: tuple[int, int]
) -> np.ndarray:
    outputs: dict[int, Tensor] = {}

    def see(visit: Visit) -> None:
        if visit.site.name == "self":
            outputs[visit.site.layer] = visit.output

    # The parameters are the caller's: gradients start at the embedding, end at heads.
    embedding = own.module.get_input_embeddings()
    start = embedding.register_forward_hook(
        lambda module, inputs, output: output.detach().requires_grad_()
    )
    try:
        with torch.enable_grad(), tap(own.module, see, anatomy=own.anatomy):
            logits = forward(own, item)[0]
            begin, end = item.scored
            answer = torch.tensor(item.ids[begin:end], device=logits.device)
            wide = torch.promote_types(logits.dtype, torch.float32)
            loss = torch.nn.functional.cross_entropy(logits.to(wide), answer)
            gradients = torch.autograd.grad(loss, list(outputs.values()))
    finally:
        start.remove()
    estimate = np.full(shape, np.nan)
    for (layer, output), gradient in zip(outputs.items(), gradients, strict=True):
        put: Any = 0.0
        if reference is not None:
            put = torch.as_tensor(reference.isel(layer=layer).values).to(output)
        was, slope = (each.detach().transpose(1, 2) for each in (output, gradient))
        change = (slope * (put - was)).double()
        estimate[layer] = change.sum((0, 1, 3)).cpu().numpy()
    return estimate


def rank_agreement(
    model: Model,
    items: Sequence[Item],
    estimate: xr.DataArray,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress | None = None,
) -> xr.Dataset:
    """How well an estimate ranks heads, by ablating a random sample of them in truth.

    Args:
        model: The model that was screened.
        items: The items that it was screened on.
        estimate: What `screen` gave for zero ablation.
        sample: Heads to ablate, drawn at random.
        seed: Of the draw and of the bootstrap.
        resamples: Of the bootstrap over heads.
        progress: As `sweep` calls it.

    Returns:
        `estimate` and `exact` over `head_name`, nats; `spearman` with its 95 %
        bootstrap interval over `bound`.

    Raises:
        InputError: Fewer than three heads are sampled.
    """
    heads = single_heads(model.anatomy)
    if not 3 <= sample <= len(heads):
        raise InputError(
            f"A rank agreement over {sample} heads was asked for; it needs 3 to "
            f"{len(heads)}. The usual number is {SAMPLE}."
        )
    rng = np.random.default_rng(seed)
    drawn = sorted(rng.choice(len(heads), sample, replace=False))
    chosen = {name: heads[name] for name in np.array(list(heads))[drawn]}
    table = sweep(model, chosen, items, kl=False, progress=progress)["nll"].mean("item")
    exact = (table - table.sel(intervention=NONE)).drop_sel(intervention=NONE).values
    guess = estimate.values.ravel()[drawn]
    rows = rng.integers(sample, size=(resamples, sample))
    ranks = [_spearman(guess[row], exact[row]) for row in rows]
    dims, names = "head_name", np.array(list(chosen), dtype=object)
    return xr.Dataset(
        {
            "estimate": (dims, guess, {"units": "nats"}),
            "exact": (dims, exact, {"units": "nats"}),
            "spearman": ((), _spearman(guess, exact)),
            "spearman_interval": ("bound", np.nanquantile(ranks, [0.025, 0.975])),
        },
        {dims: names, "bound": BOUNDS},
    )


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    found: Any = spearmanr(one, other)
    return float(found.statistic)
