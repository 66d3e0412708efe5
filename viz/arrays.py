"""What figures ask of an array: its axes, its title and its unit."""

from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InputError, ShapeError

HIDDEN_STATE = "hidden state (0 is the embedding, l follows block l \N{MINUS SIGN} 1)"
"""Axis title of the residual stream's layers."""


def require(array: Any, dims: tuple[str, ...], figure: str) -> xr.DataArray:
    """The array with its axes in the order of `dims`.

    Args:
        array: What the caller passed.
        dims: The axes that the figure draws.
        figure: Name of the function, for the message.

    Raises:
        InputError: Not a labelled array.
        ShapeError: Other axes, or nothing along one of them.
    """
    if not isinstance(array, xr.DataArray):
        raise InputError(
            f"{figure} draws an xarray.DataArray over ({', '.join(dims)}); got "
            f"{type(array).__name__}. Pass one variable of a trace or an atlas, "
            'such as atlas["heads"]["sinks"].'
        )
    if set(array.dims) != set(dims):
        extra = [str(dim) for dim in array.dims if dim not in dims]
        remedy = (
            f"Reduce the others first, such as array.mean({extra[0]!r})."
            if extra and not set(dims) - set(array.dims)
            else "Select or rename axes until they match."
        )
        raise ShapeError(
            f"{figure} needs axes ({', '.join(dims)}); got "
            f"({', '.join(map(str, array.dims))}) of shape {array.shape}. {remedy}"
        )
    if 0 in array.shape:
        raise ShapeError(
            f"{figure} needs at least one value along each axis; got shape "
            f"{array.shape} over ({', '.join(map(str, array.dims))}). "
            "Pass an array that holds something."
        )
    return array.transpose(*dims)


def depth_of(array: Any) -> str:
    """The axis of hidden states: its name in an atlas, else that in a trace."""
    return (
        "layer_residual" if "layer_residual" in getattr(array, "dims", ()) else "layer"
    )


def title(array: xr.DataArray) -> str:
    """The array's long name, else its name."""
    return str(array.attrs.get("long_name") or array.name or "value")


def unit(array: xr.DataArray) -> str:
    """The array's unit, or an empty string."""
    return str(array.attrs.get("units") or "")


def index(array: xr.DataArray, dim: str) -> np.ndarray:
    """Coordinate of an axis; without one, 0, 1, 2, ..."""
    return np.asarray(array[dim].values)


def whole_ticks(count: int, most: int = 9) -> dict:
    """At most `most` ticks, all whole, for an axis of `count` layers or heads."""
    steps = (base * 10**power for power in range(9) for base in (1, 2, 5))
    dtick = next(step for step in steps if count <= step * most)
    return {"tickmode": "linear", "tick0": 0, "dtick": dtick}


def labels(array: xr.DataArray) -> dict[int, str]:
    """Names of the values of an array of classes; empty for a quantity.

    Source:
        CF conventions, `flag_values` and `flag_meanings`.
    """
    meanings = array.attrs.get("flag_meanings", "")
    names = meanings.split() if isinstance(meanings, str) else list(meanings)
    values = np.atleast_1d(array.attrs.get("flag_values", []))
    if names and len(names) == len(values):
        return {int(value): name for value, name in zip(values, names, strict=True)}
    if array.name == "global_head":
        return {-1: "local", 0: "between", 1: "global"}
    return {}


def finite(array: xr.DataArray) -> np.ndarray:
    """The values that are numbers, flat."""
    values = np.asarray(array.values, dtype=np.float64).ravel()
    return values[np.isfinite(values)]


def correlation(first: xr.DataArray, second: xr.DataArray) -> float:
    """Pearson's r of two arrays over the same axes; NaN where it is undefined."""
    x, y = first.values.ravel(), second.transpose(*first.dims).values.ravel()
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3 or not (x[known].std() and y[known].std()):
        return float("nan")
    return float(np.corrcoef(x[known], y[known])[0, 1])
