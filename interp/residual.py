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
    Array("cosine", TOKEN, "dimensionless", "cosine to the text's first token"),
    Array("attention_write", TOKEN, "activation", "added to it by attention"),
    Array("mlp_write", TOKEN, "activation", "added to it by the MLP"),
    Array("median_all", ("layer",), "activation", "median magnitude of the layer"),
    Array("top_value", CELL, "activation", "largest cells of the layer, signed"),
    Array("top_token", CELL, "index", "their tokens", integer=True),
    Array("top_channel", CELL, "index", "their channels", integer=True),
)
"""Layer 0 is the embedding, layer l the stream after block l - 1."""

SOURCE = "arXiv:2402.17762; the cosine as in arXiv:2510.22603"

ROWS = 1024
"""Tokens that are widened at a time, so that no second stream is made."""

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as a float, by their bytes."""


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
    wide = torch.promote_types(stream.dtype, torch.float32)
    norm = torch.linalg.vector_norm(stream, dim=-1, dtype=wide)
    magnitude = stream.abs()
    largest, channel = magnitude.max(-1)
    writes = _written(stream, channel, parts or {})
    # The largest cells lie in the tokens that have the largest maxima.
    tokens = largest.topk(min(TOP, len(stream))).indices
    largest_rows = magnitude[tokens].flatten()
    cells = largest_rows.topk(min(TOP, len(largest_rows))).indices
    token, top_channel = tokens[cells // stream.shape[1]], cells % stream.shape[1]
    value = stream[token, top_channel].float()
    room = (0, TOP - len(cells))
    return {
        "norm": norm.float(),
        "max": largest.float(),
        "max_channel": channel,
        "median": magnitude.median(-1).values.float(),
        "cosine": _cosine(stream, norm).float(),
        "attention_write": writes[0],
        "mlp_write": writes[1],
        "median_all": _median(magnitude).float(),
        "top_value": torch.nn.functional.pad(value, room, value=torch.nan),
        "top_token": torch.nn.functional.pad(token, room, value=-1),
        "top_channel": torch.nn.functional.pad(top_channel, room, value=-1),
    }


def _cosine(
    stream: Float[Tensor, "token channel"], norm: Float[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """Cosine of every token to the first; 0 where one of them is nothing."""
    first = stream[0].to(norm.dtype)
    dots = [rows.to(norm.dtype) @ first for rows in stream.split(ROWS)]
    sizes = (norm * norm[0]).clamp(min=torch.finfo(norm.dtype).tiny)
    return (torch.cat(dots) / sizes).clamp(-1, 1)


def _written(
    stream: Tensor, channel: Tensor, parts: dict[str, Tensor]
) -> Float[Tensor, "half token"]:
    """What attention and MLP added to each token's largest channel.

    NaN unless input, attention and MLP add up to the stream there, so that a block
    which does anything else in between is never misread.
    """
    unknown = channel.new_full((2, len(stream)), torch.nan, dtype=torch.float32)
    if {"input", "attention", "mlp"} - parts.keys():
        return unknown
    if any(part.shape != stream.shape for part in parts.values()):
        return unknown
    wide = torch.promote_types(stream.dtype, torch.float32)
    whole, *cells = (
        part.gather(1, channel[:, None])[:, 0].to(wide)
        for part in (stream, parts["input"], parts["attention"], parts["mlp"])
    )
    total = sum(cells)
    eps = torch.finfo(parts["input"].dtype).eps
    size = sum(cell.abs() for cell in cells)
    adds_up = ((total - whole).abs() <= 16 * eps * size).all()
    return torch.where(adds_up, torch.stack(cells[1:]).float(), unknown)


def _median(magnitude: Tensor) -> Float[Tensor, ""]:
    """Lower median of all cells, of which none is negative.

    Sorting, as torch does on a device, takes several times the memory of the stream.
    """
    if magnitude.device.type == "cpu":
        return magnitude.flatten().median()
    return _median_of_bits(magnitude)


def _median_of_bits(magnitude: Tensor) -> Float[Tensor, ""]:
    """As `_median`: floats that are not negative are ordered like their bits."""
    bits = magnitude.view(INTEGERS[magnitude.element_size()])
    half = (bits.numel() + 1) // 2
    found = bits.new_zeros(())
    for place in reversed(range(8 * bits.element_size() - 1)):
        larger = found + (1 << place)
        found = torch.where((bits < larger).sum() < half, larger, found)
    return found.view(magnitude.dtype)


def stacks(anatomy: Anatomy) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Node of each stack's stream, and the sites that attend in its blocks.

    The stack that writes the output is `residual`.
    """
    names = anatomy.site_names
    if "self" in names:
        yield "residual", ("self", "cross")
    if "encoder" in names:
        node = "encoder_residual" if "self" in names else "residual"
        yield node, ("encoder",)


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
    names = [s.module_name for s in anatomy.sites if s.name in sites]
    owners = [module.get_submodule(name) for name in names]
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
