"""Models that nnsight runs elsewhere (NDIF): statistics are made where the model is.

The attention calls of a model on a server are out of the tap's reach. What a trace
asks for is sent along as functions of torch, and only statistics come back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.adapters import shipped
from interp.adapters.nnsight import known_module
from interp.adapters.torch_function import padding_name
from interp.anatomy import Anatomy, Site
from interp.errors import InputError, InterpError, UnsupportedModelError
from interp.inputs import Inputs
from interp.kernels.definitions import COLUMNS, ROWS, Edges, Statistic
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule
from interp.models import Model
from interp.tap import Visit

SERVED = tuple(type(each) for each in (*ROWS, *COLUMNS, Edges()))
"""Statistics that `shipped` knows."""

DOOR = "nnsight trace on a server, statistics in torch; weights in blocks of queries"

RESIDUAL = "remote=True brings statistics of attention alone"


@dataclass(frozen=True)
class _Place:
    """What is sent of a site: nothing that only interp knows."""

    module_name: str
    wanted: shipped.Wanted
    real_queries: Tensor | None
    real_keys: Tensor | None


def remote_model(wrapper: Any, tokenizer: Any) -> Model:
    """The model that a wrapper names, whose weights need not be here.

    Raises:
        UnsupportedModelError: The wrapper names none, or keeps its module elsewhere.
    """
    module: Any = known_module(wrapper)
    try:
        key = str(wrapper.to_model_key())
    except Exception as error:
        raise UnsupportedModelError(
            "remote=... was asked for; a server knows a model by its hub id, and this "
            f"{type(wrapper).__name__} does not give one ({error}). Wrap it by its id: "
            "nnsight.TransformersModel('org/name')."
        ) from error
    words = tokenizer or getattr(wrapper, "tokenizer", None)
    name = getattr(module.config, "_name_or_path", "") or type(module).__name__
    return Model(module, words, name, key, Anatomy.of(module))


def forward(
    wrapper: Any,
    model: Model,
    inputs: Inputs,
    options: dict[str, Any],
    wanted: Callable[[Site], Sequence[Statistic]],
    remote: bool | str,
) -> list[Visit]:
    """One forward on the server, and what it saw of every site.

    Args:
        wrapper: The nnsight model.
        model: The same, as `remote_model` reads it.
        inputs: Of the forward.
        options: Of the forward besides.
        wanted: Statistics of a site.
        remote: As nnsight takes it: True, a server's address, or `local`, which
            runs here what would be sent.

    Returns:
        Visits without queries, keys, and outputs.

    Raises:
        InputError: A statistic that is not sent.
        UnsupportedModelError: A module's code makes no call of the interface.
        InterpError: The server cannot be reached or fails.
    """
    import nnsight

    sites = model.anatomy.sites
    places = [_place(model, inputs, site, wanted(site)) for site in sites]
    sent = [vars(place) for place in places]
    statistics, call_name = shipped.attention_statistics, shipped.call_name
    nnsight.register(shipped)
    found: Any = None
    try:
        with wrapper.trace(**inputs.forward, **options, remote=remote):
            found = []
            for place in sent:
                source = wrapper.get(place["module_name"]).source
                name = call_name(source.names)
                if name is None:
                    found.append((place["module_name"], list(source.names)))
                    continue
                (owner, *tensors), given = source.node(name).inputs
                given = dict(given)
                if len(tensors) == 3:
                    tensors.append(given.pop("attention_mask", None))
                arrays = statistics(
                    owner,
                    tensors,
                    given,
                    place["wanted"],
                    place["real_queries"],
                    place["real_keys"],
                )
                found.append(((tensors[0].shape[2], tensors[1].shape[2]), arrays))
            found = nnsight.save(found)
    except InterpError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InterpError(
            f"{model.name} was to be traced by nnsight with remote={remote!r}; it "
            f"failed: {said}. Check the connection, nnsight.CONFIG.API.APIKEY and "
            "nnsight.status(); remote='local' runs the same request here."
        ) from error
    return [
        _visit(place, site, seen)
        for place, site, seen in zip(places, sites, found, strict=True)
    ]


def _place(
    model: Model, inputs: Inputs, site: Site, wanted: Sequence[Statistic]
) -> _Place:
    if unknown := [s for s in wanted if not isinstance(s, SERVED)]:
        raise InputError(
            f"{unknown[0].name} was asked for with remote=...; sent are the default "
            "statistics of rows and columns, and edges. Leave it out, or trace the "
            "model here."
        )
    keys = inputs.forward.get(padding_name(model.module, site))
    keys = None if keys is None else keys.bool()
    queries = inputs.decoder.real if site.name == "cross" else keys
    sent = [(each.name, _parameters(each)) for each in wanted]
    return _Place(site.module_name, sent, queries, keys)


def _parameters(statistic: Statistic) -> dict[str, Any]:
    """Numbers, and targets `[batch or 1, query, target]`."""
    if isinstance(statistic, Edges):
        return {"targets": [rows for _, rows in statistic.targets]}
    return dict(statistic.parameters)


def _visit(place: _Place, site: Site, seen: Any) -> Visit:
    """What a server has told of a site, in the form of the tap's visits."""
    sizes, arrays = seen
    if isinstance(sizes, str):
        raise UnsupportedModelError(
            f"A call 'attention_interface_<n>' was looked for in {sizes}; nnsight "
            f"names {', '.join(arrays)}. This family cannot be traced on a server."
        )
    n_query, n_key = sizes
    n_batch = len(next(iter(arrays.values())))
    query = torch.empty(n_batch, site.n_heads, n_query, 0)
    key = torch.empty(n_batch, site.n_kv_heads, n_key, 0)
    mask = MaskRule(
        n_query, n_key, query_padding=place.real_queries, key_padding=place.real_keys
    )
    call = AttentionCall(query, key, key, ScoreRule(1.0), mask)
    nothing = torch.empty(n_batch, site.n_heads, n_query, 0)
    lse = torch.full((n_batch, site.n_heads, n_query), torch.nan)
    return Visit(site, call, nothing, lse, arrays, "server")
