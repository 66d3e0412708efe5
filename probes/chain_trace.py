"""One forward over a prompt and its response: all that its rhythm is read from."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from interp.anatomy import Site
from interp.editing import in_force
from interp.errors import InputError
from interp.evaluation import check
from interp.forward import evaluating, lean
from interp.inputs import prepare
from interp.kernels.definitions import KEY
from interp.memory import frugal
from interp.piecewise import piecewise
from interp.predictions import expectations, final_states
from interp.probes.horizons import END, Horizon, label, received_within
from interp.probes.rhythm import Rhythm
from interp.recording import Progress
from interp.tap import Visit, tap
from interp.tasks.items import Item

if TYPE_CHECKING:
    from interp.models import Model


@frugal()
def trace_chain(
    model: "Model",
    item: Item,
    options: Rhythm | None = None,
    *,
    progress: Progress | None = None,
    impl: str = "auto",
) -> xr.DataTree:
    """Statistics of the rows and columns of a response, and what the model expected.

    Memory is linear in the text; of the logits a few rows are made at a time.

    Args:
        model: A decoder-only language model.
        item: What it scores is the response, up to its last token.
        options: Says what is recorded, and of which layers.
        progress: Called after each layer.
        impl: Implementation of the statistics, as in `interp.kernels.statistics`.

    Returns:
        As `interp.trace`, of the response's tokens only, at their positions. The node
        `self` also has `received_within` (layer, head, key, horizon): mean attention
        over the queries of a horizon that see the key; the node `predictions` has
        `entropy` and `nll` (query) in nats, of the prediction of each token: from the
        row before it. The root's attrs say `prompt_tokens`.

    Raises:
        InputError: The item does not fit the context, the response does not end it, a
            layer does not exist, or an intervention is in force.
        UnsupportedModelError: The model is no decoder-only language model, or its
            attention cannot be reached.
    """
    options = options or Rhythm()
    check(model, item)
    model.anatomy.require_attention()
    first, n_tokens = item.scored[0], len(item.ids)
    if item.scored[1] != n_tokens:
        raise InputError(
            f"A response ends its text; item {item.name} scores tokens {first} to "
            f"{item.scored[1]} of {n_tokens}. Cut what comes behind."
        )
    if in_force(model.module):
        raise InputError(
            "A chain is traced as the model stands; an intervention is in force, of "
            "which horizons would not know. Use interp.trace with "
            "attrs={'prompt_tokens': n}, and read that trace."
        )
    sites = model.anatomy.at("self")
    chosen = options.reach.among(len(sites))
    has_sinks = any(site.learned_sinks for site in sites)
    open_ended = {(0, None), options.receivers.horizon}
    horizons = [each for each in options.horizons if each not in open_ended]
    n_heads = max(site.n_heads for site in sites)
    shape = len(chosen), n_heads, n_tokens - first
    room = _Room(options, horizons, first, shape, has_sinks=has_sinks)

    def visit(seen: Visit) -> None:
        if seen.site.layer in chosen:
            room.take(seen, chosen.index(seen.site.layer))
        if progress is not None:
            progress(seen.site.layer + 1, len(sites))

    prepared = prepare(model, list(item.ids))
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model.module))
        states = stack.enter_context(final_states(model))
        watched = tap(
            model.module,
            visit,
            anatomy=model.anatomy,
            wanted=lambda site: options.statistics if site.layer in chosen else (),
            impl=impl,
        )
        stack.enter_context(watched)
        stack.enter_context(piecewise(model.module, model.anatomy))
        model.module(**prepared.forward, **lean(model.module))
    words = np.array(prepared.decoder.text[0][first:], dtype=object)
    node = room.dataset(sites, chosen, words)
    said = expectations(
        model, states[0][0, first - 1 : n_tokens - 1], list(item.ids[first:])
    )
    expected = xr.Dataset(
        {name: ("query", values) for name, values in said.items()},
        {"query": node["query"]},
    )
    attrs = {
        "model": model.name,
        "model_hash": model.content_hash,
        "input_hash": prepared.content_hash,
        "text_name": item.name,
        "n_tokens": n_tokens,
        "prompt_tokens": first,
    }
    tree = {"/": xr.Dataset(attrs=attrs), "/self": node, "/predictions": expected}
    return xr.DataTree.from_dict(tree)


class _Room:
    """Places for what the layers give, made before the forward.

    Arrays that stay, made between those that go, would leave holes in memory.
    """

    def __init__(
        self,
        options: Rhythm,
        horizons: Sequence[Horizon],
        first: int,
        shape: tuple[int, int, int],
        *,
        has_sinks: bool,
    ) -> None:
        self.horizons, self.first, self.n_tokens = horizons, first, first + shape[2]
        self.specs = [(a, s) for s in options.statistics for a in s.arrays]
        names = [array.name for array, _ in self.specs]
        self.arrays = {name: np.full(shape, np.nan, dtype="float32") for name in names}
        if not has_sinks:  # nothing is taken, which needs no room
            self.arrays["learned_sink"] = np.broadcast_to(np.float32(0), shape)
        self.within = np.full((*shape, len(horizons)), np.nan, dtype="float32")

    def take(self, seen: Visit, layer: int) -> None:
        """What one layer's attention gave, of the response only."""
        heads = slice(0, seen.site.n_heads)
        for name, room in self.arrays.items():
            if not room.flags.writeable:
                continue
            own = seen.arrays[name][0, :, self.first :]
            room[layer, heads] = own.float().cpu().numpy()
        for n, horizon in enumerate(self.horizons):
            own = received_within(seen.call, seen.lse, horizon)[0, :, self.first :]
            self.within[layer, heads, :, n] = own.float().cpu().numpy()

    def dataset(
        self, sites: Sequence[Site], layers: Sequence[int], words: np.ndarray
    ) -> xr.Dataset:
        """Everything with its labels."""
        found = {}
        for array, statistic in self.specs:
            attrs = {"units": array.unit, "long_name": array.long_name}
            attrs |= {"source": statistic.source, **statistic.parameters}
            found[array.name] = (array.dims, self.arrays[array.name], attrs)
        attrs = {"units": "fraction", "long_name": "attention from a horizon"}
        found["received_within"] = ((*KEY, "horizon"), self.within, attrs)
        place, heads = np.arange(self.first, self.n_tokens), self.within.shape[1]
        group = sites[0].n_heads // sites[0].n_kv_heads
        nears = [near for near, _ in self.horizons]
        fars = [END if far is None else far for _, far in self.horizons]
        spans = {
            name: ("layer", [getattr(sites[layer], name) or np.nan for layer in layers])
            for name in ("window", "chunk")
        }
        coords = {
            "layer": np.array(layers),
            "head": np.arange(heads),
            "kv_head": ("head", np.arange(heads) // group),
            "query": place,
            "key": place,
            "query_token": ("query", words),
            "key_token": ("key", words),
            "query_length": self.n_tokens,
            "key_length": self.n_tokens,
            "near": ("horizon", np.array(nears, dtype=int)),
            "far": ("horizon", np.array(fars, dtype=int)),
            "horizon": np.array([label(each) for each in self.horizons], dtype=object),
        }
        return xr.Dataset(found, coords | spans)
