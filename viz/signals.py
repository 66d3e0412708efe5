"""Every signal of a text's tokens that can color it, and who looks at one of them."""

import numpy as np
import xarray as xr

from interp.probes.rhythm import SOURCE
from interp.viz.arrays import require, title
from interp.viz.atlas import token_signals
from interp.viz.numbers import number
from interp.viz.tokens import visible

Row = dict[str, str | int]

FLAGS = ("preplan", "anchor")
"""Tokens that a rhythm tells apart: those that plan, and those come back to."""


def every_signal(text: xr.Dataset) -> dict[str, xr.DataArray]:
    """What a text can be colored by, over (layer, token) or (token).

    Args:
        text: A text's node of an atlas.

    Returns:
        What a token receives, the share of heads that sink into it, its largest
        activation, and every detector over tokens.
    """
    found = token_signals(text)
    if "sink_share" in text:
        found["sink_share"] = text["sink_share"].transpose("layer", "token")
    if "max" in text:
        peaks = text["max"].transpose("layer_residual", "token")
        found["largest_activation"] = peaks.rename(layer_residual="layer").assign_attrs(
            long_name="largest activation of the residual stream",
            description="Massive activations stand out by orders of magnitude.",
            source="arXiv:2402.17762",
        )
    return found


def flagged(rhythm: xr.Dataset, name: str, count: int) -> xr.DataArray:
    """Tokens of a response that a rhythm tells apart, as 0 and 1 over the whole text.

    Args:
        rhythm: What `interp.probes.rhythm.Rhythm.read` gave.
        name: One of `FLAGS`.
        count: Tokens of the text; those before the response have no value.
    """
    flag = rhythm[name]
    if "horizon" in flag.dims:
        flag = flag.isel(horizon=-1, drop=True)  # to the end of the text
    values = np.full(count, np.nan)
    values[-flag.sizes["token"] :] = flag.values
    attrs = {"source": SOURCE, **flag.attrs, "units": "1 is yes"}
    return xr.DataArray(values, dims="token", name=name, attrs=attrs)


def of_layer(values: xr.DataArray, layer: int | None) -> xr.DataArray:
    """One layer of a signal over (token), or its largest over layers.

    Args:
        values: As `every_signal` gives it.
        layer: None for the largest. Signals that tell no layers apart stay as they are.
    """
    if "layer" not in values.dims:
        return values
    if layer is None:
        largest = values.max("layer", keep_attrs=True)
        return largest.assign_attrs(long_name=f"{title(values)}, largest over layers")
    one = values.sel(layer=layer, drop=True)
    return one.assign_attrs(values.attrs, long_name=f"{title(values)}, layer {layer}")


def strongest_tokens(
    values: xr.DataArray, tokens: list[str], count: int = 12
) -> list[Row]:
    """The tokens with the largest values, with a few words around each."""
    values = require(values, ("token",), "strongest_tokens")
    size = np.nan_to_num(values.values.astype(np.float64), nan=-np.inf)
    ranked = np.argsort(-size, kind="stable")[:count]
    return [
        {
            "position": place,
            "token": visible(tokens[place]),
            "in context": context(tokens, place),
            title(values): number(float(size[place])),
        }
        for place in ranked.tolist()
        if np.isfinite(size[place])
    ]


def lookers(site: xr.Dataset, layer: int, head: int, token: int) -> list[Row]:
    """Queries of one head that look at a token more than at any other.

    Args:
        site: A trace's node, with `max_key` and `max_mass`.
        layer: Of the head.
        head: Of the head.
        token: The key.
    """
    where = {"layer": layer, "head": head}
    mass = site["max_mass"].sel(where).values
    queries = np.flatnonzero(site["max_key"].sel(where).values == token)
    tokens = words(site, "query")
    ranked = queries[np.argsort(-mass[queries], kind="stable")]
    return [
        {
            "position": query,
            "token": visible(tokens[query]),
            "in context": context(tokens, query),
            "weight": number(float(mass[query])),
        }
        for query in ranked.tolist()
    ]


def examples(
    site: xr.Dataset, rows: xr.DataArray, layer: int, head: int, count: int = 10
) -> list[Row]:
    """Places of a text where a head's value is largest, and what it looks at there.

    Args:
        site: A trace's node, with `max_key` and `max_mass`.
        rows: A value for every query, over (layer, head, query).
        layer: Of the head.
        head: Of the head.
        count: How many.
    """
    where = {"layer": layer, "head": head}
    values = rows.sel(where).values.astype(np.float64)
    size = np.nan_to_num(values, nan=-np.inf)
    keys = site["max_key"].sel(where).values
    mass = site["max_mass"].sel(where).values
    queries, words_ = words(site, "query"), words(site, "key")
    return [
        {
            "position": place,
            "in context": context(queries, place),
            "value": number(float(size[place])),
            "looks most at": f"{int(keys[place])}: {context(words_, int(keys[place]))}",
            "weight": number(float(mass[place])),
        }
        for place in np.argsort(-size, kind="stable")[:count].tolist()
        if np.isfinite(size[place]) and keys[place] >= 0
    ]


def words(site: xr.Dataset, side: str) -> list[str]:
    """Tokens of the queries or keys of a trace's node; their indices without."""
    name = f"{side}_token"
    if name in site.coords:
        return [str(token) for token in site[name].values]
    return [f"[{i}]" for i in range(site.sizes[side])]


def context(tokens: list[str], place: int, around: int = 5) -> str:
    """A token between brackets, with a few before and behind it."""
    before = "".join(visible(t, 16) for t in tokens[max(place - around, 0) : place])
    behind = "".join(visible(t, 16) for t in tokens[place + 1 : place + 1 + around])
    return f"{before}\N{LEFT SQUARE BRACKET}{visible(tokens[place])}]{behind}"
