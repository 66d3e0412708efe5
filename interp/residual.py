"""Statistics of the residual stream: where it is large, and which half wrote it there."""

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
    written: tuple[Float[Tensor, "token channel"], Float[Tensor, "token channel"]]
    | None,
) -> dict[str, Tensor]:
    """Statistics of one layer's stream of one text.

    Args:
        stream: The residual stream.
        written: What attention and MLP added, where they are known.
    """
    magnitude = stream.float().abs()
    largest, channel = magnitude.max(-1)
    writes = torch.full((2, len(stream)), torch.nan)
    if written is not None:
        at = channel[:, None]
        writes = torch.stack([half.float().gather(1, at)[:, 0] for half in written])
    flat = magnitude.flatten()
    cells = flat.topk(min(TOP, len(flat))).indices
    if len(cells) < TOP:
        cells = torch.nn.functional.pad(cells, (0, TOP - len(cells)), value=-1)
    named = cells >= 0
    token, top_channel = cells // stream.shape[1], cells % stream.shape[1]
    value = stream.float().flatten()[cells.clamp(min=0)]
    return {
        "norm": stream.float().norm(dim=-1),
        "max": largest,
        "max_channel": channel,
        "median": magnitude.median(-1).values,
        "attention_write": writes[0],
        "mlp_write": writes[1],
        "median_all": flat.median(),
        "top_value": value.masked_fill(~named, torch.nan),
        "top_token": token.masked_fill(~named, -1),
        "top_channel": top_channel.masked_fill(~named, -1),
    }


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
            seen[half] = seen[half] + output if half in seen else output

        return keep

    def enter(stream: Tensor) -> None:
        seen.clear()
        seen["input"] = stream
        if index == 0:
            record(0, [describe(stream[s, t], None) for s, t in enumerate(tokens)])

    def leave(stream: Tensor) -> None:
        written = _written(seen, stream)
        layers = [
            describe(
                stream[s, own],
                None if written is None else (written[0][s, own], written[1][s, own]),
            )
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


def _written(seen: dict[str, Tensor], stream: Tensor) -> tuple[Tensor, Tensor] | None:
    """What the halves added, if input and halves add up to the block's output."""
    if "attention" not in seen or "mlp" not in seen:
        return None
    attention, mlp = seen["attention"], seen["mlp"].view_as(stream)
    if attention.shape != stream.shape:
        return None
    gap = (seen["input"] + attention + mlp - stream).abs().max()
    allowed = 16 * torch.finfo(stream.dtype).eps * stream.abs().max()
    return (attention, mlp) if gap <= allowed else None
