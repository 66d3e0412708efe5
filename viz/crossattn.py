"""The page of attention against saliency: seen, heard, and in numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.viz import atlas as reading
from interp.viz.arrays import title, unit
from interp.viz.audio import player
from interp.viz.crossattn_curves import agreement_plot, curve_plot
from interp.viz.crossattn_figures import TOKENS, aligned, token_by_token
from interp.viz.crossattn_reading import (
    PREFERRED,
    interval,
    named,
    pairs,
    preferred,
    utterances,
)
from interp.viz.crossattn_tables import (
    agreement_rows,
    area_rows,
    at,
    baseline_rows,
    between,
    error_rows,
    measures,
    missed_of_sum,
)
from interp.viz.embed import FigureBook
from interp.viz.findings import Finding
from interp.viz.maps import head_map
from interp.viz.numbers import decimals, number, percent
from interp.viz.page import compose
from interp.viz.sections import provenance
from interp.viz.tokens import visible

CONVERGED = 0.2
"""Share of their sum that integrated gradients may miss without being said to."""

UTTERANCES = 6
"""Utterances that are drawn and can be heard; the others stay in the store."""

Part = dict[str, Any]


def page(tree: xr.DataTree) -> str:
    """The page of a comparison, as HTML.

    Args:
        tree: As `interp.probes.crossattn.compare` returns it.

    Raises:
        InputError: Not a comparison.
    """
    names = utterances(tree)
    if not names:
        raise InputError(
            "A page is written from a comparison, an xarray.DataTree with a node for "
            f"each utterance; got {type(tree).__name__}. Pass what "
            "interp.probes.crossattn.compare returned."
        )
    book = FigureBook()
    agreement = tree["agreement"].to_dataset()
    published = reading.setting(tree, "published", [])
    shown = [_utterance(tree.children[name], book) for name in names[:UTTERANCES]]
    return compose(
        "crossattn.html",
        book,
        facts=_facts(tree),
        findings=list(findings(tree)),
        utterances=shown,
        more=len(names) - len(shown),
        agreement_figure=book.add(
            agreement_plot(agreement, published),
            "Correlation of attention with every saliency, beside chance and "
            "published ranges.",
        ),
        measures=measures(agreement),
        rows=list(agreement_rows(agreement)),
        published=published,
        baselines=baseline_rows(agreement),
        maps=list(_maps(tree, book)),
        curves=_curves(tree, book),
        areas=list(area_rows(tree)),
        errors=list(error_rows(tree)),
        tokens=TOKENS,
        options=reading.setting(tree, "parameters", {}),
        skipped=reading.skipped(tree),
        provenance=provenance(tree, None),
    )


def findings(tree: xr.DataTree) -> Iterator[Finding]:
    """What agrees, how far, and whether it matters, as sentences."""
    agreement = tree["agreement"].to_dataset()
    space, method = preferred(agreement)
    one = agreement.sel(space=space, attribution=method)
    value = at(one, "overall", "pearson")
    low, high = interval(one, "pearson")
    null = one["overall_null"].sel(measure="pearson").values
    as_published = method == "perturbation"
    noisy = as_published and "without_noise" in agreement
    yield Finding(
        f"r = {decimals(value)} with saliency",
        f"Mean attention of {_heads(tree)} correlates with the saliency by "
        f"{named(method, space)} with r = {decimals(value)} ({between(low, high)}); "
        f"rotated at random in time, with {between(*null)}."
        + (_beside_published(tree, value) if as_published and not noisy else ""),
        "agreement",
    )
    if noisy:
        yield _without_noise(tree, agreement.sel(space=space))
    by_head = one["by_head"].sel(measure="pearson")
    if by_head.notnull().any():
        best = by_head.fillna(-np.inf).argmax(...)
        layer, head = (
            int(by_head[dim].values[int(best[dim])]) for dim in ("layer", "head")
        )
        yield Finding(
            f"L{layer}.H{head} agrees most",
            f"Alone, it correlates with r = {decimals(float(by_head.max()))}; the "
            f"middle head with {decimals(float(by_head.median()))}. It was found by "
            "looking: its own interval is in the map below.",
            "heads",
        )
    if "coverage" in agreement:
        mixing = _mixing(agreement, method, noisy)
        if mixing is not None:
            yield mixing
    missed = missed_of_sum(tree)
    if missed > CONVERGED:
        yield Finding(
            f"Integrated gradients miss {percent(missed)}",
            "Over the input they should add up to what all of it changes, and miss "
            f"{percent(missed)} of that (median over tokens): there are too few points "
            "on the way to the baseline. Read them with care, or take more with "
            "--steps.",
            "faithfulness",
        )
    if "faithfulness" in tree.children:
        yield _faithful(tree["faithfulness"].to_dataset(), method)


def _without_noise(tree: xr.DataTree, one: xr.Dataset) -> Finding:
    free, ceiling = one["without_noise"].item(), one["ceiling"].item()
    if not np.isfinite(free):
        return Finding(
            "Too few masks",
            "Two halves of the masks give saliencies that have nothing in common: what "
            "they show is noise. Take more with --masks.",
            "agreement",
        )
    bounds = one["without_noise_interval"].values
    return Finding(
        f"r = {decimals(free)} without the masks' noise",
        "Two halves of the masks agree so far that no map could correlate with the "
        f"saliency of all of them by more than {decimals(ceiling)}. With masks without "
        f"end, r would be {decimals(free)} ({between(*bounds)})."
        + _beside_published(tree, free),
        "agreement",
    )


def _mixing(agreement: xr.Dataset, method: str, noisy: bool) -> Finding | None:
    """What the encoder mixes, without the masks' noise where that is known."""
    covered = agreement["coverage"].sel(attribution=method).item()
    mixed = agreement["context_mixing"].sel(attribution=method).item()
    if noisy and "mixing_without_noise" in agreement:
        covered = agreement["without_noise"].sel(space="states").item()
        mixed = agreement["mixing_without_noise"].item()
    if not np.isfinite(covered) or not np.isfinite(mixed):
        return None
    free = ", without the masks' noise," if noisy else ""
    told = f"With the saliency of encoder outputs the correlation{free} is "
    told += decimals(covered)
    if mixed <= 0:
        return Finding(
            "Nothing lost to mixing",
            f"{told}, no more than with that of the input: the encoder leaves things "
            "where they are.",
            "agreement",
        )
    return Finding(
        f"{decimals(mixed)} lost to mixing",
        f"{told}, {decimals(mixed)} more than with that of the input: so much of the "
        "gap is the encoder's, which mixes what stands side by side.",
        "agreement",
    )


def _beside_published(tree: xr.DataTree, value: float) -> str:
    published = reading.setting(tree, "published", [])
    if not published:
        return ""
    low, high = float(published[0]["low"]), float(published[0]["high"])
    where = "within" if low <= value <= high else "outside"
    return (
        f" The published range for the best aggregate is {low:.2f} to {high:.2f}: ours "
        f"lies {where} it."
    )


def _faithful(areas: xr.Dataset, method: str) -> Finding:
    gain = areas["auc_gain"].sel(direction="deletion")
    known = [str(each) for each in gain["explanation"].values]
    said = []
    for name in ("attention", method):
        if name in known:
            value = gain.sel(explanation=name).item()
            bounds = areas["auc_gain_interval"].sel(
                {"direction": "deletion", "explanation": name}
            )
            said.append(
                f"{name.replace('_', ' ')} by {decimals(value, 3)} "
                f"({between(*bounds.values, digits=3)})"
            )
    return Finding(
        "What goes first matters",
        "As the places that an explanation calls most important are replaced, the "
        "probability of the token falls faster than in random order: "
        f"{', '.join(said)} of area under the curve.",
        "faithfulness",
    )


def _facts(tree: xr.DataTree) -> Part:
    attrs = tree.attrs
    return {
        "model": visible(str(attrs.get("model", "unnamed model")), 80),
        "kind": str(attrs.get("kind", "text")),
        "n_utterances": int(attrs.get("n_utterances", len(utterances(tree)))),
        "n_tokens": int(attrs.get("n_tokens", 0)),
        "heads": _heads(tree),
        "seed": attrs.get("seed", 0),
    }


def _heads(tree: xr.DataTree) -> str:
    heads = str(tree.attrs.get("heads", "all"))
    return "all heads" if heads == "all" else heads


def _utterance(node: xr.DataTree, book: FigureBook) -> Part:
    """One window or text: heard, drawn, and its words."""
    utterance = node.to_dataset()
    key, name = str(node.name), visible(str(node.attrs.get("name", node.name)), 60)
    known = pairs(utterance)
    method = next((m for m in PREFERRED if ("input", m) in known), known[0][1])
    space = "input" if ("input", method) in known else known[0][0]
    sound = None
    if "waveform" in utterance:
        wave = utterance["waveform"]
        rate = float(wave.attrs.get("rate", node.attrs.get("rate", 16000)))
        sound = player(wave.values, rate, f"sound-{key}", f"{name}, the recording")
    return {
        "key": key,
        "name": name,
        "text": visible(str(node.attrs.get("text", "")), 2000),
        "begin": number(float(node.attrs.get("begin", 0))),
        "seconds": number(float(node.attrs["seconds"]))
        if "seconds" in node.attrs
        else None,
        "n_tokens": utterance.sizes["token"],
        "method": named(method, space),
        "sound": sound,
        "aligned": book.add(
            aligned(utterance, method, space),
            f"{name}: attention and saliency of every token.",
        ),
        "by_token": book.add(
            token_by_token(utterance, method),
            f"{name}: attention and saliency of one token at a time.",
        )
        if space == "input"
        else None,
        "words": list(_words(node)),
    }


def _words(node: xr.DataTree) -> Iterator[Part]:
    if "words" not in node.children:
        return
    table = node.children["words"].to_dataset(inherit=False).to_dataframe()
    for word in table.to_dict("records"):
        yield {
            "text": visible(str(word["text"]), 40),
            "begin": f"{word['begin']:.2f}",
            "end": f"{word['end']:.2f}",
        }


def _maps(tree: xr.DataTree, book: FigureBook) -> Iterator[Part]:
    """Agreement of every head, and how well it tells time."""
    agreement = tree["agreement"].to_dataset()
    space, method = preferred(agreement)
    chosen = [pair for pair in pairs(agreement) if pair[1] == method]
    for own_space, own in dict.fromkeys([(space, method), *chosen]):
        one = agreement.sel(space=own_space, attribution=own, measure="pearson")
        array = one["by_head"].assign_attrs(
            units="1", long_name=f"r with {named(own, own_space)}"
        )
        bounds = one["by_head_interval"]
        yield _card(f"pearson_{own_space}", array, book, _READ["pearson"], bounds)
    if "timing" not in tree.children:
        return
    for name, array in tree["timing"].to_dataset().data_vars.items():
        if name in _READ:
            yield _card(str(name), array, book, _READ[str(name)])


_READ = {
    "pearson": "Each head alone against the saliency: 1 where it looks exactly at what "
    "matters.",
    "head_error": "How far the place that the head looks at most lies from the place "
    "that matters most, mean over tokens. Small is good.",
    "chosen": "Heads of which word times are read, those with the smallest distance.",
}


def _card(
    name: str,
    array: xr.DataArray,
    book: FigureBook,
    read: str,
    bounds: xr.DataArray | None = None,
) -> Part:
    array = array.transpose("layer", "head")
    heading = title(array)
    return {
        "name": name,
        "title": heading[:1].upper() + heading[1:],
        "unit": unit(array).removeprefix("1"),
        "figure": book.add(
            head_map(array, bounds), f"{heading}: map of layers by heads.", "half heads"
        ),
        "description": read,
    }


def _curves(tree: xr.DataTree, book: FigureBook) -> list[Part]:
    nodes = [tree.children[name].children for name in utterances(tree)]
    curves = [
        node["curves"].to_dataset(inherit=False) for node in nodes if "curves" in node
    ]
    return [
        {
            "title": direction.capitalize(),
            "figure": book.add(curve_plot(curves, direction), f"{direction} curves."),
        }
        for direction in ("deletion", "insertion")
        if curves
    ]
