"""Statistics of the residual stream: where it is large, and what wrote it there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import hooks
from interp.anatomy import Anatomy
from interp.kernels.definitions import Array

TOP = 8
"""Cells of a layer that are named, by magnitude."""

TOKEN = ("layer", "token")
CELL = ("layer", "rank")

ARRAYS = (
    Array("norm", TOKEN, "activation", "L2 norm of the residual stream"),
    Array("max", TOKEN, "activation", "largest magnitude"),
    Array("max_channel", TOKEN, "index", "channel of it", integer=True),
    Array("median", TOKEN, "activation", "median magnitude"),
    Array("attention_write", TOKEN, "activation", "added to it by attention"),
    Array("mlp_write", TOKEN, "activation", "added to it by the MLP"),
    Array("median_all", ("layer",), "activation", "median magnitude of the layer"),
    Array("top_value", CELL, "activation", "largest cells of the layer, signed"),
    Array("top_token", CELL, "index", "their tokens", integer=True),
    Array("top_channel", CELL, "index", "their channels", integer=True),
)
"""Layer 0 is the embedding, layer l the stream after block l - 1."""

SOURCE = "arXiv:2402.17762"


def describe(
    stream: Float[Tensor, "token channel"],
    parts: dict[str, Float[Tensor, "token channel"]] | None = None,
) -> dict[str, Tensor]:
    """Statistics of one layer's stream of one text.

    Args:
        stream: The residual stream after a block.
        parts: The block's `input`, and what its `attention` and `mlp` added, where
            these are known.
    """
    stream = stream.float()
    magnitude = stream.abs()
    largest, channel = magnitude.max(-1)
    writes = _written(stream, channel, parts or {})
    # The largest cells lie in the tokens that have the largest maxima.
    tokens = largest.topk(min(TOP, len(stream))).indices
    largest_rows = magnitude[tokens].flatten()
    cells = largest_rows.topk(min(TOP, len(largest_rows))).indices
    token, top_channel = tokens[cells // stream.shape[1]], cells % stream.shape[1]
    value = stream[token, top_channel]
    room = (0, TOP - len(cells))
    return {
        "norm": stream.norm(dim=-1),
        "max": largest,
        "max_channel": channel,
        "median": magnitude.median(-1).values,
        "attention_write": writes[0],
        "mlp_write": writes[1],
        "median_all": magnitude.flatten().median(),
        "top_value": torch.nn.functional.pad(value, room, value=torch.nan),
        "top_token": torch.nn.functional.pad(token, room, value=-1),
        "top_channel": torch.nn.functional.pad(top_channel, room, value=-1),
    }


def _written(
    stream: Tensor, channel: Tensor, parts: dict[str, Tensor]
) -> Float[Tensor, "half token"]:
    """What attention and MLP added to each token's largest channel.

    NaN unless input, attention and MLP add up to the stream there, so that a block
    which does anything else in between is never misread.
    """
    unknown = torch.full((2, len(stream)), torch.nan)
    if {"input", "attention", "mlp"} - parts.keys():
        return unknown
    if any(part.shape != stream.shape for part in parts.values()):
        return unknown
    at = channel[:, None]
    cell = {name: part.float().gather(1, at)[:, 0] for name, part in parts.items()}
    total = cell["input"] + cell["attention"] + cell["mlp"]
    whole = stream.gather(1, at)[:, 0]
    eps = torch.finfo(parts["input"].dtype).eps
    size = sum(part.abs() for part in cell.values())
    adds_up = bool(((total - whole).abs() <= 16 * eps * size).all())
    return torch.stack([cell["attention"], cell["mlp"]]) if adds_up else unknown


def stack(module: nn.Module, anatomy: Anatomy, site: str) -> list[nn.Module]:
    """The blocks of the stack that holds a site's attention, in order."""
    return hooks.blocks(module, anatomy, site)


@contextmanager
def watch(
    module: nn.Module,
    anatomy: Anatomy,
    sites: tuple[str, ...],
    tokens: list[slice],
    record: Callable[[int, list[dict[str, Tensor]]], None],
) -> Iterator[None]:
    """Records the stream of the blocks of some sites, layer by layer, during a forward.

    Args:
        module: The model.
        anatomy: Its anatomy.
        sites: Sites whose blocks make up the stack.
        tokens: Real tokens of each sample.
        record: Called with the layer and each sample's statistics.
    """
    modules = dict(module.named_modules())
    owners = [modules[s.module_name] for s in anatomy.sites if s.name in sites]
    blocks = hooks.blocks(module, anatomy, *sites)
    with ExitStack() as hooked:
        for index, block in enumerate(blocks):
            inside = set(block.modules())
            own = [owner for owner in owners if owner in inside]
            _watch_block(hooked, index, block, own, tokens, record)
        yield


def _watch_block(
    stack: ExitStack,
    index: int,
    block: nn.Module,
    attention: list[nn.Module],
    tokens: list[slice],
    record: Callable[[int, list[dict[str, Tensor]]], None],
) -> None:
    seen: dict[str, Tensor] = {}
    attention, mlp = hooks.halves(block, attention)

    def add(half: str) -> hooks.Hook:
        def keep(output: Tensor) -> None:
            if output.dim() == 2:  # experts flatten the tokens
                output = output.view_as(seen["input"])
            seen[half] = seen[half] + output if half in seen else output

        return keep

    def enter(stream: Tensor) -> None:
        seen.clear()
        seen["input"] = stream
        if index == 0:
            record(0, [describe(stream[s, own]) for s, own in enumerate(tokens)])

    def leave(stream: Tensor) -> None:
        layers = [
            describe(stream[s, own], {n: part[s, own] for n, part in seen.items()})
            for s, own in enumerate(tokens)
        ]
        seen.clear()
        record(index + 1, layers)

    stack.enter_context(hooks.on_input(block, enter))
    for each in attention:
        stack.enter_context(hooks.on_output(each, add("attention")))
    if mlp is not None:
        stack.enter_context(hooks.on_output(mlp, add("mlp")))
    stack.enter_context(hooks.on_output(block, leave))
