"""What heads look at while a text is made, one query at a time."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr

from interp.anatomy import Site
from interp.errors import InputError, UnsupportedModelError
from interp.forward import evaluating
from interp.generation import Seeded, Stop, Tell, Watch, generation_config, told
from interp.inputs import prepare
from interp.kernels.definitions import Edges, Statistic
from interp.models import Model
from interp.tap import Visit, tap


def trace_decoding(
    model: Model,
    prompt: Any,
    statistics: Sequence[Statistic],
    *,
    max_new_tokens: int = 50,
    stop: Stop | None = None,
    tell: Tell | None = None,
    seed: int = 0,
    impl: str = "auto",
    **options: Any,
) -> xr.DataTree:
    """Row statistics of each step of decoding, at query length 1.

    The prompt up to its last token fills the cache untraced. Then each step feeds a
    token, the last of the prompt first; its row predicts the token generated next.

    Args:
        model: A decoder-only model; run as it stands.
        prompt: A text or token ids; at least two tokens.
        statistics: Of rows (one number a query or rank); `Edges` name keys of the
            prompt in one row of targets.
        max_new_tokens: How many tokens at most.
        stop: Ends the text early.
        tell: Told of every token.
        seed: Of sampling.
        impl: Implementation of the statistics.
        options: Of `transformers.GenerationConfig`.

    Returns:
        A node `self`: arrays over (layer, head, query, ...), `query` being the
        absolute position of the token fed; key indices are absolute as well. The
        root's attrs say `prompt_tokens` and `generated` (ids, JSON).

    Raises:
        InputError: A prompt of one token, several prompts, no room in the context, an
            unknown option, or a statistic of keys.
        UnsupportedModelError: The model does not generate, or cannot be traced.
    """
    inputs = prepare(model, prompt)
    _check_rows(model, statistics)
    config = generation_config(model, inputs, max_new_tokens, options)
    given = inputs.forward["input_ids"]
    if given.shape[1] < 2:
        raise InputError(
            "Decoding is traced from the last token of a prompt on; got a prompt of "
            "one token. Give at least two."
        )
    module: Any = model.module
    steps = _Steps(statistics, {site.layer: site.window for site in _own(model)})
    watch = Watch(given.shape[1], [], stop, tell, None)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(evaluating(module))
        cache = module(given[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        steps.begin(given.shape[1] - 1)
        tapped = tap(
            module, steps.visit, anatomy=model.anatomy, wanted=steps.wanted, impl=impl
        )
        stack.enter_context(tapped)
        module.generate(
            given,
            attention_mask=torch.ones_like(given),
            past_key_values=cache,
            generation_config=config,
            stopping_criteria=[watch],
            logits_processor=[Seeded(seed, given.shape[1])],
        )
    words = inputs.sides("self")[0].text[0]
    fed = (*words[-1:], *_words(model, watch.generated[:-1]))
    node = steps.dataset(model, fed)
    attrs = told(inputs, given.shape[1], watch.generated)
    root = xr.Dataset(attrs=attrs | {"model": model.name, "seed": seed})
    return xr.DataTree.from_dict({"/": root, "/self": node})


class _Steps:
    """Row statistics of each step, as the tap sees them."""

    def __init__(
        self, statistics: Sequence[Statistic], windows: dict[int, int | None]
    ) -> None:
        self.statistics, self.windows = tuple(statistics), windows
        self.arrays = {a.name: a for s in statistics for a in s.arrays}
        self.rows: dict[tuple[str, int], list[np.ndarray]] = {}
        self.kv_heads: dict[int, int] = {}
        self.position = self.n_calls = 0

    def begin(self, position: int) -> None:
        """The position of the token that the first step feeds."""
        self.position = position

    def wanted(self, site: Site) -> list[Statistic]:
        """The statistics of a step, the keys of edges counted as its cache does."""
        window = self.windows[site.layer]
        gone = 0 if window is None else max(self.position + 1 - window, 0)
        every = slice(0, 1)
        keys = slice(gone, self.position + 1)
        return [
            s.narrow(0, every, keys) if isinstance(s, Edges) else s
            for s in self.statistics
        ]

    def visit(self, visit: Visit) -> None:
        """Keeps a layer's row, and counts the step when the last layer is done."""
        offset = visit.call.mask.key_offset
        for name, values in visit.arrays.items():
            own = values[0, :, 0].cpu().numpy()
            if self.arrays[name].integer:
                own = np.where(own >= 0, own + offset, own)
            self.rows.setdefault((name, visit.site.layer), []).append(own)
        self.n_calls += 1
        if self.n_calls % len(self.windows) == 0:
            self.position += 1

    def dataset(self, model: Model, fed: Sequence[str]) -> xr.Dataset:
        """Every row in its place."""
        sites = _own(model)
        n_heads = max(site.n_heads for site in sites)
        first = self.position - self.n_calls // len(sites)
        found = {}
        for name, array in self.arrays.items():
            empty = -1 if array.integer else np.nan
            layers = []
            for site in sites:
                own = np.stack(self.rows[name, site.layer], axis=1)
                room = [(0, n_heads - len(own)), *[(0, 0)] * (own.ndim - 1)]
                layers.append(np.pad(own, room, constant_values=empty))
            attrs = {"units": array.unit, "long_name": array.long_name}
            found[name] = (array.dims, np.stack(layers), attrs)
        group = sites[0].n_heads // sites[0].n_kv_heads
        coords: dict[str, Any] = {
            "layer": [site.layer for site in sites],
            "head": np.arange(n_heads),
            "kv_head": ("head", np.arange(n_heads) // group),
            "query": first + np.arange(len(fed)),
            "query_token": ("query", np.array(fed, dtype=object)),
        }
        edges = [s for s in self.statistics if isinstance(s, Edges)]
        if edges:
            coords["edge"] = np.array(edges[0].labels, dtype=object)
        return xr.Dataset(found, coords)


def _own(model: Model) -> Sequence[Site]:
    sites = model.anatomy.at("self")
    if not sites or model.module.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"Steps of decoding were asked for; {model.name} is no decoder-only model. "
            "Trace what it generates with interp.trace_generation."
        )
    return sites


def _check_rows(model: Model, statistics: Sequence[Statistic]) -> None:
    _own(model)
    columns = [a.name for s in statistics for a in s.arrays if a.dims[2] != "query"]
    if columns or not statistics:
        raise InputError(
            f"Steps of decoding have rows; asked for {', '.join(columns) or 'nothing'}."
            " Ask for statistics of queries, or use interp.trace_generation."
        )


def _words(model: Model, ids: Sequence[int]) -> list[str]:
    if model.tokenizer is None:
        return [f"#{token}" for token in ids]
    return list(model.tokenizer.batch_decode([[token] for token in ids]))
