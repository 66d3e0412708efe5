"""Reading an atlas: its detectors, its texts, what is missing and why.

Knows the layout of the DataTree and nothing of how it is shown.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

SPLIT = "global_head"
"""Classes of heads by how far they look; drawn among the distances."""

SUFFIXES = ("_interval", "_texts")


def detectors(atlas: xr.DataTree) -> list[str]:
    """Names of the head-level results, in the order of the atlas."""
    if "heads" not in atlas.children:
        return []
    heads = atlas["heads"].to_dataset()
    return [
        str(name)
        for name, array in heads.data_vars.items()
        if set(array.dims) == {"layer", "head"} and not str(name).endswith(SUFFIXES)
    ]


def detector(atlas: xr.DataTree, name: str) -> xr.DataArray | None:
    """One head-level result over (layer, head), or None."""
    if name not in detectors(atlas):
        return None
    return atlas["heads"].to_dataset()[name].transpose("layer", "head")


def bounds(atlas: xr.DataTree, name: str) -> xr.DataArray | None:
    """Its interval over (layer, head, bound), or None when nothing is known of it."""
    heads = atlas["heads"].to_dataset()
    found = heads.data_vars.get(f"{name}_interval")
    if found is None or set(found.dims) != {"layer", "head", "bound"}:
        return None
    return found.transpose("layer", "head", "bound")


def texts(atlas: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """Token-level node of each text, by number."""
    names = [name for name in atlas.children if name.startswith("text_")]
    for name in sorted(names, key=lambda name: (len(name), name)):
        yield name, atlas[name].to_dataset()


def token_signals(text: xr.Dataset) -> dict[str, xr.DataArray]:
    """What is known of every token, over (layer, token) or (token).

    What is told of single heads is averaged over them. What a token receives comes
    first; the share of sinking heads has figures of its own.
    """
    found = {}
    for name in sorted(map(str, text.data_vars), key=lambda name: name != "received"):
        array = text[name]
        place = [dim for dim in ("token", "key", "query") if dim in array.dims]
        rest = set(array.dims) - {*place, "head", "layer"}
        if len(place) != 1 or rest:
            continue
        is_number = array.dtype.kind == "f" and bool(np.isfinite(array.values).any())
        of_text = array.sizes[place[0]] == text.sizes.get("token")
        if not (is_number and of_text) or name == "sink_share":
            continue
        if "head" in array.dims:
            mean = array.mean("head", dtype="float64", keep_attrs=True)
            title = f"{array.attrs.get('long_name', name)}, mean over heads"
            array = mean.assign_attrs(long_name=title)
        found[name] = array.rename({place[0]: "token"}).transpose(..., "token")
    return found


def strings(text: xr.Dataset) -> list[str]:
    """The text's tokens, or their indices where strings are unknown."""
    count = text.sizes.get("token", 0)
    if "token_text" not in text.coords:
        return [f"[{i}]" for i in range(count)]
    return [str(token) for token in text["token_text"].values]


def has(text: xr.Dataset, *names: str) -> bool:
    """Whether all the variables are there and hold a number."""
    return all(
        name in text.data_vars
        and text[name].size > 0
        and bool(np.isfinite(text[name].values.astype(np.float64)).any())
        for name in names
    )


def setting(atlas: xr.DataTree, name: str, fallback: Any) -> Any:
    """A root attribute, parsed where it is JSON."""
    value = atlas.attrs.get(name, fallback)
    if isinstance(value, str) and not isinstance(fallback, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return fallback
    return value if isinstance(value, type(fallback)) else fallback


def epsilon(atlas: xr.DataTree) -> float:
    """The share of attention that makes a sink.

    Source:
        arXiv:2410.10781 uses 0.3.
    """
    return float(atlas.attrs.get("epsilon", 0.3))


def skipped(atlas: xr.DataTree) -> list[tuple[str, str]]:
    """`(what, why)` of everything that was left out."""
    entries = setting(atlas, "skipped", [])
    return [
        (str(entry.get("what", "?")), str(entry.get("why", "no reason was recorded")))
        for entry in entries
        if isinstance(entry, dict)
    ]


def why_absent(atlas: xr.DataTree, *names: str) -> str:
    """The recorded reasons for the absence of any of the names, or an empty string."""
    reasons = [why for what, why in skipped(atlas) if what in names]
    return "; ".join(dict.fromkeys(reasons))
