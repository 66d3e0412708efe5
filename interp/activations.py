"""Activations themselves, to patch with and to average: what a trace sums up."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp import hooks, residual
from interp.editing import in_force
from interp.errors import InputError, UnsupportedModelError
from interp.forward import evaluating, lean
from interp.inputs import prepare
from interp.models import Model
from interp.tap import Visit, tap

AT_SITES = {
    "head_output": ("layer", "query", "head", "d_value"),
    "q": ("layer", "query", "head", "d_head"),
    "k": ("layer", "key", "kv_head", "d_head"),
    "v": ("layer", "key", "kv_head", "d_value"),
}
"""Arrays of each kind of site: outputs before the projection; q and k as attended."""

AT_BLOCKS = {
    "stream": ("layer", "token", "d_model"),
    "attention": ("block", "token", "d_model"),
    "mlp": ("block", "token", "d_model"),
}
"""Arrays of the residual stream: itself (layer 0 is the embedding), and both writes."""

LIMIT = 4 << 30
"""Bytes that are recorded at most, unless more are allowed."""


def record(
    model: Model,
    inputs: Any,
    parts: Sequence[str] = (*AT_SITES, *AT_BLOCKS),
    *,
    max_tokens: int | None = None,
    limit: int = LIMIT,
) -> xr.DataTree:
    """The activations of one forward, labelled as a trace is.

    Args:
        model: From `interp.load`.
        inputs: What `interp.trace` takes; texts of a batch must be equally long.
        parts: Of `head_output`, `q`, `k`, `v` for the node of each kind of site, and
            `stream`, `attention`, `mlp` for the residual stream.
        max_tokens: Keep at most this many tokens.
        limit: Bytes allowed in all.

    Returns:
        A node for each kind of site, with `(layer, query, head, d_value)` and the
        like, and `residual` with `(layer, token, d_model)`, where the halves have
        `block` instead of `layer`; a leading `sample` axis for several texts. All
        float32 or wider, in the model's own unit.

    Raises:
        InputError: An unknown part, texts of different length, or too many bytes.
        UnsupportedModelError: The model's attention cannot be reached.
    """
    unknown = [part for part in parts if part not in (*AT_SITES, *AT_BLOCKS)]
    if unknown:
        raise InputError(
            f"The activations {', '.join(unknown)} were asked for; there are "
            f"{', '.join((*AT_SITES, *AT_BLOCKS))}. Choose of them."
        )
    anatomy = model.anatomy
    anatomy.require_attention()
    prepared = prepare(model, inputs, max_tokens)
    if any(side.real is not None for side in (prepared.decoder, prepared.encoder)):
        raise InputError(
            "Activations of texts of different length were asked for, which have no "
            "common positions. Record one text at a time, or cut them with max_tokens."
        )
    found = _Found(limit, prepared.n_samples, prepared.is_batch)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model.module))
        visit = _visitor(found, parts)
        stack.enter_context(tap(model.module, visit, anatomy=anatomy))
        _watch(stack, model, found, parts)
        model.module(**prepared.forward, **lean(model.module))
    tree = {f"/{node}": xr.Dataset(found.arrays(node)) for node in found.nodes}
    attrs = {"model": model.name, "model_hash": model.content_hash}
    attrs["input_hash"] = prepared.content_hash
    attrs["interventions"] = json.dumps([str(e) for e in in_force(model.module)])
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **tree})


class _Found:
    """Layers as they come, by node and name."""

    def __init__(self, limit: int, n_samples: int, is_batch: bool) -> None:
        self.limit, self.n_samples, self.is_batch = limit, n_samples, is_batch
        self.size = 0
        self.nodes: dict[str, dict[str, list[np.ndarray]]] = {}

    def add(self, node: str, name: str, values: Tensor) -> None:
        """One layer of an array, `[sample, token, ...]`."""
        if values.dim() == 2:  # experts flatten the tokens
            values = values.unflatten(0, (self.n_samples, -1))
        wide = torch.promote_types(values.dtype, torch.float32)
        array = values.detach().to("cpu", wide, copy=True).numpy()
        self.size += array.nbytes
        if self.size > self.limit:
            raise InputError(
                f"Activations of more than {self.limit:,} bytes were asked for, the "
                "limit. Ask for fewer parts or tokens, or pass a larger limit."
            )
        self.nodes.setdefault(node, {}).setdefault(name, []).append(array)

    def arrays(self, node: str) -> dict[str, xr.DataArray]:
        """The layers of a node, stacked."""
        made = {}
        for name, layers in self.nodes[node].items():
            stacked = np.stack(layers, 1)
            dims = "sample", *(AT_SITES | AT_BLOCKS)[name]
            values = xr.DataArray(stacked, dims=dims, attrs={"units": "activation"})
            made[name] = values if self.is_batch else values.isel(sample=0)
        return made


def _visitor(found: _Found, parts: Sequence[str]) -> Any:
    def visit(visit: Visit) -> None:
        call = visit.call
        tensors = {"head_output": visit.output, "q": call.query}
        tensors |= {"k": call.key, "v": call.value}
        for name, tensor in tensors.items():
            if name in parts:
                if tensor.shape[-1] == 0:
                    raise UnsupportedModelError(
                        f"The activation {name} was asked for; {visit.site.module_name}"
                        " computes attention by itself, and only its scores can be "
                        "seen. Ask for head_output, v or the stream."
                    )
                found.add(visit.site.name, name, tensor.transpose(1, 2))

    return visit


def _watch(stack: ExitStack, model: Model, found: _Found, parts: Sequence[str]) -> None:
    """Hooks on every stack of blocks."""
    for node, sites in residual.stacks(model.anatomy):

        def add(name: str, node: str = node) -> hooks.Hook:
            return lambda values: found.add(node, name, values)

        blocks = hooks.blocks(model.module, model.anatomy, *sites)
        for index, block in enumerate(blocks):
            if "stream" in parts and index == 0:
                stack.enter_context(hooks.on_input(block, add("stream")))
            for half in ("attention", "mlp"):
                if half in parts:
                    writer = hooks.writer(model.module, model.anatomy, block, half)
                    stack.enter_context(hooks.on_output(writer, add(half)))
            if "stream" in parts:
                stack.enter_context(hooks.on_output(block, add("stream")))
