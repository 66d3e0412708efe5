"""Preplan and anchor: the rhythm of chains of thought, in one dataset."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.probes.chain_trace import trace_chain
from interp.probes.coupling import over_texts
from interp.probes.experiment import Progress
from interp.probes.reading import Bootstrap
from interp.probes.rhythm import Rhythm
from interp.tasks.items import Item

if TYPE_CHECKING:
    from interp.models import Model


def rhythm(
    source: "Model | xr.DataTree | Sequence[xr.DataTree]",
    items: Sequence[Item] | Item | None = None,
    options: Rhythm | None = None,
    *,
    bootstrap: Bootstrap | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Look-back, later influence, token sets and their coupling, of every chain.

    Args:
        source: A model, which reads each item once; or traces of responses.
        items: What the model reads: those of the task `Chains`, or others whose scored
            tokens end them.
        options: What is read off, and how.
        bootstrap: How intervals over chains are made.
        progress: Told of every chain.

    Returns:
        Along `chain` what `Rhythm.read` gives, short chains padded with NaN, "" and
        False, and `n_tokens`, `prompt_tokens` (chain). Over (link, horizon) what
        `over_texts` gives: the means over chains, their lift and its interval.

    Raises:
        InputError: No chain, two of one name, or one that does not fit.
        NotCapturedError: A trace lacks what is needed.
        UnsupportedModelError: The model is no decoder-only language model.
    """
    options = options or Rhythm()
    chains: list[xr.Dataset] = []
    if isinstance(source, xr.DataTree | Sequence):
        if items is not None:
            raise InputError(
                "A rhythm is read from traces, or from a model and items; got traces "
                "and items. Leave the items out."
            )
        traces = [source] if isinstance(source, xr.DataTree) else source
        chains = [options.read(each) for each in traces]
    else:
        items = [items] if isinstance(items, Item) else items or ()
        n_layers = len(source.anatomy.at("self"))
        for done, item in enumerate(items):
            if progress is not None:
                progress("rhythm", done, len(items))
            chains.append(options.read(trace_chain(source, item, options), n_layers))
        if progress is not None and items:
            progress("rhythm", len(items), len(items))
    model = {} if isinstance(source, xr.DataTree | Sequence) else _said(source)
    return together(chains, bootstrap).assign_attrs(model)


def together(
    chains: Sequence[xr.Dataset], bootstrap: Bootstrap | None = None
) -> xr.Dataset:
    """Chains that were read one by one, as `rhythm` returns them.

    Args:
        chains: What `Rhythm.read` gave, of one model and with one set of options.
        bootstrap: How intervals over chains are made.

    Raises:
        InputError: No chain, or two of one name.
    """
    names = [each.attrs["name"] for each in chains]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"A rhythm needs one or more chains of different names; got {names}. Take "
            "the items of one task, or name the traces."
        )
    found = along_chains(chains)
    overall = over_texts(found, bootstrap or Bootstrap())
    attrs = {name: chains[0].attrs[name] for name in ("options", "skipped")}
    return found.merge(overall, join="outer").assign_attrs(attrs)


def along_chains(chains: Sequence[xr.Dataset]) -> xr.Dataset:
    """What `Rhythm.read` gave of several chains, as one.

    Args:
        chains: Of one model and with one set of options.
    """
    longest = max(each.sizes["token"] for each in chains)
    parts: list[xr.Dataset] = []
    for each in chains:
        empty = {"token_text": ""}
        empty |= {name: False for name, v in each.items() if v.dtype == bool}
        filled = {name: empty.get(str(name), np.nan) for name in each}
        part = each.reindex(token=np.arange(longest), fill_value=filled)
        part = part.drop_vars(["query_length", "key_length"], errors="ignore")
        counts = {"n_tokens": each.sizes["token"]}
        counts["prompt_tokens"] = each.attrs["prompt_tokens"]
        parts.append(part.assign(counts))
    names = np.array([each.attrs["name"] for each in chains], dtype=object)
    along = xr.DataArray(names, dims="chain", name="chain")
    found = xr.concat(parts, along, data_vars="all", combine_attrs="override")
    for name, title in (("n_tokens", "response"), ("prompt_tokens", "prompt")):
        found[name].attrs = {"units": "tokens", "long_name": f"length of the {title}"}
    return found


def _said(model: "Model") -> dict[str, str]:
    return {"model": model.name, "model_hash": model.content_hash}
