"""Reads the mask functions of transformers as rules, without building a mask.

A mask function is a closure. The ones that transformers composes are recognized by
name and reduced to a band of distances; the reading is then checked against the
function itself on sampled pairs, and whatever is not recognized, or disagrees, stays
a function that is asked tile by tile.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.kernels.masks import MaskFunction, MaskRule

HOME = "transformers.masking_utils"
"""Module whose mask functions are recognized."""

SAMPLED = 4096
"""Pairs on which a reading is checked."""


@dataclass(frozen=True)
class Band:
    """A range of distances, and whether it says all that the function says."""

    ahead: int | None
    behind: int | None
    exact: bool = True

    def __and__(self, other: "Band") -> "Band":
        """Distances in both."""
        return Band(
            _least(self.ahead, other.ahead),
            _least(self.behind, other.behind),
            self.exact and other.exact,
        )


ANY = Band(None, None, exact=False)


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def read_band(function: Callable[..., Any]) -> Band:
    """The band of distances outside which the function shows nothing."""
    if getattr(function, "__module__", None) != HOME:
        return ANY
    free = inspect.getclosurevars(function).nonlocals
    match function.__qualname__.split(".")[0]:
        case "causal_mask_function":
            return Band(0, None)
        case "bidirectional_mask_function":
            return Band(None, None)
        case "sliding_window_overlay":
            return Band(None, free["sliding_window"] - 1)
        case "sliding_window_bidirectional_overlay":
            return Band(free["sliding_window"], free["sliding_window"])
        case "and_masks":
            band = Band(None, None)
            for part in free["mask_functions"]:
                band = band & read_band(part)
            return band
        case _:
            return ANY


def lazy_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> MaskRule:
    """What transformers calls to make a mask; gives the rule instead.

    Registered beside the attention function, so that no mask of size query x key
    exists either.
    """
    function = mask_function or _causal
    band = read_band(function)
    if use_vmap:
        function = _one_by_one(function)
    box = q_length, kv_length, int(q_offset), int(kv_offset)
    exact = band.exact and _agrees(function, band, *box)
    if not exact and not _covers(function, band, device, *box):
        band = ANY
    padding = _padding(attention_mask, kv_length, box[3])
    starts = None
    if attention_mask is not None and box[3] > 0:
        starts = attention_mask.long().argmax(-1)
    return MaskRule(
        q_length,
        kv_length,
        ahead=band.ahead,
        behind=band.behind,
        query_offset=box[2],
        key_offset=box[3],
        starts=starts,
        key_padding=padding,
        function=None if exact else function,
        n_batch=batch_size,
        device=device,
    )


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def _padding(mask: Tensor | None, length: int, offset: int) -> Tensor | None:
    """Real keys of the call, `[batch, key]`; None when all are."""
    if mask is None:
        return None
    missing = length + offset - mask.shape[-1]
    if missing > 0:
        mask = torch.nn.functional.pad(mask, (0, missing))
    mask = mask[:, offset : offset + length].bool()
    return None if bool(mask.all()) else mask


def _one_by_one(function: Callable[..., Tensor]) -> MaskFunction:
    """A function of scalars, mapped over broadcast indices as transformers does."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    def mapped(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        together = torch.broadcast_tensors(batch, head, query, key)
        with TransformGetItemToIndex():
            flat = torch.vmap(function)(*(index.flatten() for index in together))
        return flat.view(together[0].shape)

    return mapped


def _sampled(
    function: MaskFunction,
    band: Band,
    device: torch.device | str,
    n_query: int,
    n_key: int,
    q_offset: int,
    k_offset: int,
) -> tuple[Tensor, Tensor]:
    """Distances of sampled pairs, and what the function says of them.

    Half of the pairs lie where the band begins and ends.
    """
    draw = torch.Generator().manual_seed(0)  # the global one is the caller's
    query = torch.randint(n_query, (SAMPLED,), generator=draw) + q_offset
    key = torch.randint(n_key, (SAMPLED,), generator=draw) + k_offset
    edges = torch.tensor([0, -(band.ahead or 0), band.behind or 0])
    n_near = SAMPLED // 2
    edge = edges[torch.randint(len(edges), (n_near,), generator=draw)]
    near = query[:n_near] - edge + torch.randint(-2, 3, (n_near,), generator=draw)
    key[:n_near] = near.clamp(k_offset, k_offset + n_key - 1)
    query, key = query.to(device), key.to(device)
    batch = torch.zeros_like(query)
    return query - key, function(batch, batch, query, key)


def _inside(distance: Tensor, band: Band) -> Tensor:
    inside = torch.ones_like(distance, dtype=torch.bool)
    if band.ahead is not None:
        inside &= distance >= -band.ahead
    if band.behind is not None:
        inside &= distance <= band.behind
    return inside


def _agrees(function: MaskFunction, band: Band, *box: int) -> bool:
    # What is recognized reads no tensors: no need to wait for the device.
    distance, seen = _sampled(function, band, "cpu", *box)
    return bool((_inside(distance, band) == seen).all())


def _covers(
    function: MaskFunction, band: Band, device: torch.device | str, *box: int
) -> bool:
    if band.ahead is None and band.behind is None:
        return True
    distance, seen = _sampled(function, band, device, *box)
    return bool((_inside(distance, band) | ~seen).all())
