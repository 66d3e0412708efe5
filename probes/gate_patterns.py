"""Which KV heads stay full, by their trained gates; and the file of such gates."""

import os
from pathlib import Path

import numpy as np
import xarray as xr

from interp.anatomy import Anatomy
from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet
from interp.probes.groups import over_groups

NOISE = 1e-6
"""Range of what decides between equal gates."""

OUTSIDE = 0.1
"""How far a gate in a file may be from [0, 1]: the last step is not clamped."""


def full_heads(
    gates: xr.DataArray,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    seed: int = 0,
) -> HeadSet:
    """The heads that keep full attention, whole KV groups.

    Those whose gate, with a little noise that decides between equals, reaches the
    threshold: the quantile of all gates at `sparsity`, or a given one.

    Args:
        gates: Over (layer, head), with `kv_head` along the heads.
        sparsity: Share of the KV heads that become local; from 1 on all, up to 0 none.
        threshold: Instead of `sparsity`; 0.5 in the released evaluation.
        seed: Of the noise.

    Raises:
        InputError: Not exactly one of `sparsity` and `threshold`, or gates that are
            no numbers.

    Source:
        DuoAttention (arXiv:2410.10819), released code.
    """
    values = _finite(over_groups(gates).transpose("layer", "head").values)
    values = values + np.random.default_rng(seed).uniform(0, NOISE, values.shape)
    if sparsity is not None and threshold is None:
        inside = float(np.quantile(values, np.clip(sparsity, 0, 1)))
        least = np.inf if sparsity >= 1 else -np.inf if sparsity <= 0 else inside
    elif threshold is not None and sparsity is None:
        least = threshold
    else:
        raise InputError(
            "Full heads are chosen by either sparsity or threshold; got "
            f"sparsity={sparsity}, threshold={threshold}. Give one of them."
        )
    grid = HeadGrid.of(gates)
    chosen = np.argwhere(values >= least).tolist()
    members = [(layer, kv_head * grid.group) for layer, kv_head in chosen]
    return HeadSet.of(members, grid).as_kv_groups()


def save_pattern(gates: xr.DataArray, path: str | Path) -> None:
    """Writes gates as the released code does: a row a layer, tabs between KV heads.

    Args:
        gates: Over (layer, head), with `kv_head` along the heads.
        path: Of the file, such as full_attention_heads.tsv; whole or not at all.
    """
    values = _finite(over_groups(gates).transpose("layer", "head").values)
    part = Path(f"{path}.part")
    np.savetxt(part, values.astype(np.float64), delimiter="\t")
    os.replace(part, path)


def load_pattern(path: str | Path, source: Anatomy | HeadGrid) -> xr.DataArray:
    """Gates from a file of the released layout.

    Args:
        path: Of the file.
        source: The model's anatomy, or its grid of heads.

    Returns:
        `gates` over (layer, head), clipped to [0, 1].

    Raises:
        InputError: The file cannot be read, is of another model, or holds no gates.
    """
    grid = HeadGrid.of(source)
    try:
        values = np.loadtxt(path, delimiter="\t", ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(
            f"Gates were to be read from {path}: {error}. Give a file with a row of "
            "numbers for each layer, tabs between them."
        ) from error
    if values.shape != (grid.n_layers, grid.n_kv_heads):
        raise InputError(
            f"{path} holds {values.shape[0]} rows of {values.shape[1]} gates; the "
            f"model has {grid.n_layers} layers of {grid.n_kv_heads} KV heads. Give the "
            "file that belongs to it."
        )
    if not (abs(_finite(values) - 0.5) <= 0.5 + OUTSIDE).all():
        raise InputError(
            f"{path} holds values from {values.min():g} to {values.max():g}; gates lie "
            "between 0 and 1. Give a file of gates."
        )
    heads = np.arange(grid.n_heads)
    return xr.DataArray(
        values.clip(0, 1).repeat(grid.group, axis=1),
        dims=("layer", "head"),
        coords={
            "layer": np.arange(grid.n_layers),
            "head": heads,
            "kv_head": ("head", heads // grid.group),
        },
        name="gates",
        attrs={
            "units": "fraction",
            "long_name": "gate of full attention",
            "site": grid.site,
        },
    )


def _finite(values: np.ndarray) -> np.ndarray:
    """Refuses gates that are no numbers."""
    if not np.isfinite(values).all():
        raise InputError(
            f"{np.count_nonzero(~np.isfinite(values))} of {values.size} gates are no "
            "numbers. Train them again, or mend the file."
        )
    return values
