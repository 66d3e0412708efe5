"""The page of a rhythm: the text in colors, its curves, and coupling beside chance."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from interp.errors import InputError
from interp.viz import atlas as reading
from interp.viz.arrays import title, unit
from interp.viz.embed import FigureBook
from interp.viz.findings import Finding
from interp.viz.maps import head_map
from interp.viz.numbers import NOTHING, number, percent
from interp.viz.page import compose, write_page
from interp.viz.rhythm_curves import (
    first_horizon,
    lift_plot,
    null_range,
    rhythm_curves,
    rows_of,
)
from interp.viz.sections import provenance
from interp.viz.strips import colored_text
from interp.viz.tokens import strip_style, visible

CHAINS = 8
"""Chains shown token by token; the others stay in the store."""
TOKENS = 1500
"""Tokens of each that are shown as text."""
SURE = 0.05
"""Largest p of what is more than chance gives."""
PROMPT = 600
"""Characters of a prompt that are shown, from its end."""

Part = dict[str, Any]


def write(found: xr.Dataset, path: Path) -> Path:
    """Write the page of a rhythm.

    Args:
        found: As `interp.probes.preplan.rhythm` returns it; `prompt_text` (chain) and
            credits (chain, token) are shown where they are there.
        path: The file, or an existing folder that gets an `index.html`.

    Returns:
        The file that was written, whole or not at all.

    Raises:
        InputError: Not a rhythm.
        StorageError: The file cannot be written.
    """
    return write_page(render(found), path)


def render(found: xr.Dataset) -> str:
    """The page of a rhythm, as HTML.

    Raises:
        InputError: Not a rhythm.
    """
    if not isinstance(found, xr.Dataset) or "waad" not in found:
        raise InputError(
            "A page is written from a rhythm, an xarray.Dataset with curves of tokens; "
            f"got {type(found).__name__}. Pass what interp.probes.preplan.rhythm "
            "returned."
        )
    book = FigureBook()
    tree = xr.DataTree(found.copy(deep=False))
    drawn = [row for _, row in rows_of(found)]
    chains = list(_chains(found, book))
    return compose(
        "rhythm.html",
        book,
        facts=_facts(found),
        findings=list(findings(found)),
        lifts=book.add(lift_plot(found), "Lift of each link beside chance.")
        if drawn
        else None,
        rows=list(_rows(found)),
        chains=chains,
        more=found.sizes["chain"] - len(chains),
        maps=list(_maps(found, book)),
        options=_options(found),
        skipped=reading.skipped(tree),
        provenance=provenance(tree, None)
        | {"intervals": [str(found["lift_interval"].attrs.get("interval", ""))]},
        strip_style=Markup(strip_style()),
    )


def findings(found: xr.Dataset) -> Iterator[Finding]:
    """What couples, and how well heads are told apart, as sentences."""
    shown = first_horizon(found)
    for link, said in _SAID.items():
        row = {"link": link, "horizon": shown}
        lift = found["mean_lift"].sel(row).item()
        if not np.isfinite(lift):
            continue
        measure = number if link == "entropy" else percent
        observed, expected = (
            measure(found[f"mean_{name}"].sel(row).item())
            for name in ("observed", "expected")
        )
        low, high = null_range(found, row)
        p = found["mean_p"].sel(row).item()
        sure = "" if p < SURE else " That is no more than chance gives."
        yield Finding(
            f"{_change(lift)} {_WHAT[link]}",
            f"{said.format(observed=observed, expected=expected)} By chance alone the "
            f"change lies between {_change(low)} and {_change(high)} "
            f"(p = {number(p)}).{sure}",
            "coupling",
        )
    overlap = found["overlap"].mean("chain")
    local, distant = (overlap.sel(side=side).item() for side in ("local", "global"))
    if np.isfinite(distant):
        yield Finding(
            f"{percent(distant)} stay global",
            f"Without the first token, which draws much of the attention, "
            f"{percent(distant)} of the global heads and {percent(local)} of the local "
            "heads are still that.",
            "heads",
        )


_SAID = {
    "follows": "{observed} of the tokens with most later influence (FAI) stand at or "
    "right after a peak of look-back (WAAD); of all tokens, {expected}.",
    "entropy": "Where look-back (WAAD) peaks, the model's prediction of the token has "
    "an entropy of {observed} nats; over all tokens, {expected} nats.",
    "receivers": "{observed} of the peaks of receiver heads are peaks of global heads; "
    "of all tokens, {expected}.",
}

_WHAT = {
    "follows": "after look-back",
    "entropy": "entropy",
    "receivers": "by receivers",
}


def _facts(found: xr.Dataset) -> Part:
    n_tokens = found["n_tokens"].values
    return {
        "model": visible(str(found.attrs.get("model", "unnamed model")), 80),
        "n_chains": found.sizes["chain"],
        "n_tokens": int(n_tokens.sum()),
        "names": [visible(str(name), 60) for name in found["chain"].values],
        "shown": first_horizon(found),
        "draws": found.sizes["draw"],
    }


def _rows(found: xr.Dataset) -> Iterator[Part]:
    """The table of links: all chains together."""
    for name, row in rows_of(found):
        one = found.sel(row)
        measure = number if row["link"] == "entropy" else percent
        low, high = one["lift_interval"].transpose("bound", ...).values
        null = null_range(found, row)
        bounds = [_change(each) for each in (low, high)]
        yield {
            "name": name,
            "observed": measure(one["mean_observed"].item()),
            "expected": measure(one["mean_expected"].item()),
            "lift": _change(one["mean_lift"].item()),
            "interval": NOTHING if NOTHING in bounds else " to ".join(bounds),
            "null": " to ".join(map(_change, null)),
            "p": number(one["mean_p"].item()),
        }


def _chains(found: xr.Dataset, book: FigureBook) -> Iterator[Part]:
    """Each chain: its prompt, its text in colors, and its curves."""
    shown = first_horizon(found)
    for place in range(min(found.sizes["chain"], CHAINS)):
        n_tokens = int(found["n_tokens"][place])
        chain = found.isel(chain=place, token=slice(n_tokens))
        name = visible(str(chain["chain"].item()), 60)
        marks = {
            "preplan": chain["preplan"].values.astype(bool),
            "anchor": chain["anchor"].sel(horizon=shown).values.astype(bool),
        }
        prompt = str(chain["prompt_text"].item()) if "prompt_text" in chain else ""
        yield {
            "id": f"chain_{place}",
            "name": name,
            "n_tokens": n_tokens,
            "n_prompt": int(chain["prompt_tokens"]),
            "prompt": prompt[-PROMPT:],
            "is_cut": len(prompt) > PROMPT,
            "figure": book.add(
                rhythm_curves(chain), f"{name}: WAAD, FAI and entropy of every token."
            ),
            "strip": colored_text(_signals(chain), TOKENS, marks),
        }


def _signals(chain: xr.Dataset) -> xr.Dataset:
    """What the text can be colored by, one variable each."""
    found: dict[str, xr.DataArray] = {}
    for name in ("waad", "fai", "delta", "entropy", "nll", *_CREDITS):
        if name not in chain:
            continue
        array = chain[name]
        if "horizon" not in array.dims:
            found[name] = array.assign_attrs(description=_ABOUT.get(name, ""))
            continue
        for horizon in map(str, array["horizon"].values):
            own = array.sel(horizon=horizon, drop=True)
            long_name = f"{title(array)}, {horizon} tokens later"
            found[f"{name} {horizon}"] = own.assign_attrs(
                long_name=long_name, description=_ABOUT[name]
            )
    bare = {name: each.drop_vars(each.coords) for name, each in found.items()}
    words = np.array([str(text) for text in chain["token_text"].values], dtype=object)
    return xr.Dataset(bare, {"token_text": ("token", words)})


_CREDITS = ("credit_local", "credit_global", "credit_coupled")
_ABOUT = {
    "waad": "How far back local heads look from the token, up to a few tokens.",
    "fai": "How much global heads look at the token from later ones.",
    "delta": "How much look-back changes to the next token: preplan tokens have most.",
    "entropy": "How unsure the model was before it read the token.",
    "nll": "How little the model expected the token.",
    "credit_local": "Factor of a policy gradient's advantage: preplan tokens.",
    "credit_global": "Factor of a policy gradient's advantage: anchors.",
    "credit_coupled": "Factor of a policy gradient's advantage: anchors, and tokens "
    "that introduce one.",
}


def _maps(found: xr.Dataset, book: FigureBook) -> Iterator[Part]:
    """Heads on their grid, means over chains."""
    sink = _options(found)["sink"]
    one = found.sel(sink=sink, drop=True)
    arrays = {"span": one["span"], "reach": one["reach"]}
    arrays |= {name: found[name] for name in ("kurtosis",) if name in found}
    for name, array in arrays.items():
        mean = array.mean("chain", keep_attrs=True).transpose("layer", "head")
        if not np.isfinite(mean.values).any():
            continue
        heading = title(array)[:1].upper() + title(array)[1:]
        yield {
            "name": name,
            "title": heading,
            "unit": unit(array),
            "figure": book.add(
                head_map(mean), f"{heading}: map of layers by heads.", "half heads"
            ),
            "description": _HEADS[name],
        }


_HEADS = {
    "span": "How many tokens back the head looks from the tokens of a response, mean "
    "over texts.",
    "reach": "+1 for the heads that look furthest, \N{MINUS SIGN}1 for those that look "
    "nearest, mean over texts.",
    "kurtosis": "How unevenly tokens receive the head's attention from far behind; the "
    "heads of the highest are receiver heads.",
}


def _options(found: xr.Dataset) -> Part:
    """How it was read, for the method."""
    said = json.loads(str(found.attrs.get("options", "{}")))
    reach, coupling = said.get("reach", {}), said.get("coupling", {})
    return {
        "sink": "without" if reach.get("exclude_sink") else "with",
        "layers": reach.get("layers"),
        "head_share": float(reach.get("share", np.nan)),
        "share": float(said.get("share", np.nan)),
        "clip": said.get("clip"),
        "receiver_share": float(said.get("receiver_share", np.nan)),
        "peaks": coupling.get("peaks"),
        "peak_share": float(coupling.get("share", np.nan)),
        "null": coupling.get("null"),
        "draws": coupling.get("draws"),
    }


def _change(lift: float) -> str:
    """A lift as signed percent."""
    if not np.isfinite(lift):
        return NOTHING
    return ("+" if lift > 0 else "") + percent(lift).replace("-", "\N{MINUS SIGN}")
