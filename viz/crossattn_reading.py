"""What a comparison of attention with saliency holds, and what its parts are called."""

from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InputError

PREFERRED = ("perturbation", "integrated_gradients", "input_x_gradient", "gradient")
"""Saliency that is drawn beside attention: the first of these that was run."""


def utterances(tree: Any) -> list[str]:
    """Names of the nodes of utterances, in order."""
    if not isinstance(tree, xr.DataTree) or "agreement" not in tree.children:
        return []
    found = [name for name in tree.children if name.startswith("utterance_")]
    return sorted(found, key=lambda name: (len(name), name))


def preferred(agreement: xr.Dataset) -> tuple[str, str]:
    """Space and method of the saliency that is drawn."""
    known = pairs(agreement)
    for method in PREFERRED:
        if ("input", method) in known:
            return "input", method
    return known[0]


def chosen_saliency(utterance: Any, method: str, space: str) -> xr.DataArray:
    """The saliency `(token, position)` of a method.

    Raises:
        InputError: Not an utterance, or it has no such saliency.
    """
    if not isinstance(utterance, xr.Dataset) or "saliency" not in utterance:
        raise InputError(
            "Attention is drawn beside the saliency of an utterance; got "
            f"{type(utterance).__name__}. Pass a node utterance_N of "
            "interp.probes.crossattn.compare, as a Dataset."
        )
    spaces, methods = (
        utterance[name].values.tolist() for name in ("space", "attribution")
    )
    if space not in spaces or method not in methods:
        raise InputError(
            f"The saliency {named(method, space)} was asked for; there are "
            f"{', '.join(methods)} of {', '.join(spaces)}. Choose of these."
        )
    return utterance["saliency"].sel(space=space, attribution=method)


def pairs(tree: xr.Dataset) -> list[tuple[str, str]]:
    """Spaces and methods of which there is anything."""
    spaces, methods = (tree[name].values.tolist() for name in ("space", "attribution"))
    array = tree["overall"] if "overall" in tree else tree["saliency"]
    return [
        (space, method)
        for method in methods
        for space in spaces
        if array.sel(space=space, attribution=method).notnull().any()
    ]


def named(method: str, space: str = "input") -> str:
    """What a saliency is called."""
    of = "" if space == "input" else f", {_SPACES.get(space, space)}"
    return f"{method.replace('_', ' ')}{of}"


_SPACES = {"states": "encoder outputs"}


def interval(one: xr.Dataset, measure: str) -> tuple[float, float]:
    """Over utterances if there are several, else over tokens."""
    bounds = one["overall_interval"].sel(measure=measure).transpose("over", "bound")
    for over in ("utterances", "tokens"):
        if over in bounds["over"].values:
            low, high = bounds.sel(over=over).values.tolist()
            if np.isfinite([low, high]).all():
                return low, high
    return np.nan, np.nan
