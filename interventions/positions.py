"""Where a text's own tokens are in a call: after padding, a cache, a sliding window."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import InputError
from interp.kernels.rules import AttentionCall


def queries_of(
    call: AttentionCall,
) -> Iterator[tuple[int, slice, Int[Tensor, " query"]]]:
    """Each sample's real queries, and their places in their own text, from 0."""
    for sample, queries, keys in call.samples():
        mask = call.mask.narrow(sample, queries, keys)
        place = torch.arange(mask.query_length) + mask.query_offset - mask.start
        yield sample, queries, place.to(call.query.device)


def keys_of(call: AttentionCall) -> Iterator[tuple[int, slice, Int[Tensor, " key"]]]:
    """Each sample's real keys, and their places in their own text, from 0."""
    for sample, queries, keys in call.samples():
        mask = call.mask.narrow(sample, queries, keys)
        place = torch.arange(mask.key_length) + mask.key_offset - mask.start
        yield sample, keys, place.to(call.query.device)


def tokens_of(values: xr.DataArray, place: Int[Tensor, " token"]) -> Tensor:
    """Recorded values at some places of the text, `[token, ...]`.

    Raises:
        InputError: The values end before the text does.
    """
    tensor = torch.as_tensor(values.values, device=place.device)
    if len(place) and int(place.max()) >= len(tensor):
        raise InputError(
            f"Values of {len(tensor)} tokens were to replace those of "
            f"{int(place.max()) + 1}. Record a text that is at least as long."
        )
    return tensor[place]


class Frame:
    """Places of the tokens of the forward that runs, each in its own text.

    What a block is given says nothing of padding or of a cache; the model's own
    arguments do.
    """

    def __init__(self, module: nn.Module, site: str = "self") -> None:
        self.module = module
        paired = getattr(module.config, "is_encoder_decoder", False)
        prefix = "decoder_" if paired and site != "encoder" else ""
        self.mask_name = f"{prefix}attention_mask"
        self.cached = site != "encoder"
        self.offset, self.mask, self.n_batch = 0, None, 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Reads the arguments of each forward within the block."""
        signature = inspect.signature(self.module.forward)

        def read(_module: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
            given = signature.bind_partial(*inputs, **options).arguments
            given |= given.pop("kwargs", {})
            cache = given.get("past_key_values") if self.cached else None
            self.offset = 0 if cache is None else cache.get_seq_length()
            mask = given.get(self.mask_name)
            self.mask = mask if mask is not None and mask.dim() == 2 else None
            tokens = given.get("input_ids")
            tokens = given.get("inputs_embeds") if tokens is None else tokens
            self.n_batch = 1 if tokens is None else tokens.shape[0]

        handle = self.module.register_forward_pre_hook(read, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def by_sample(self, stream: Tensor) -> Float[Tensor, "batch token d_model"]:
        """A view of the stream: some experts flatten the tokens of all samples."""
        return stream if stream.dim() == 3 else stream.unflatten(0, (self.n_batch, -1))

    def places(self, stream: Tensor) -> Int[Tensor, "batch token"]:
        """Of the tokens of a stream `[batch, token, d_model]`; below 0 for padding."""
        n_batch, n_tokens = stream.shape[:2]
        place = torch.arange(n_tokens, device=stream.device) + self.offset
        place = place.expand(n_batch, -1)
        if self.mask is None:
            return place
        real = self.mask.bool().to(stream.device)
        place = place - real.long().argmax(-1, keepdim=True)
        own = real[:, self.offset : self.offset + n_tokens]
        return place.masked_fill(~own, -1)
