"""MLPs on a part of the text at a time, since they take nothing from token to token.

What an MLP works with is several times as wide as the stream: over a long text it is
most of what a forward without maps holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.anatomy import Anatomy
from interp.errors import UnsupportedModelError
from interp.hooks import blocks
from interp.neurons import down_projection, stream_site

PIECE = 1024
"""Tokens at a time: enough to keep the products as fast as over all of them."""


@contextmanager
def piecewise(
    module: nn.Module, anatomy: Anatomy, n_tokens: int = PIECE
) -> Iterator[None]:
    """Runs the MLP of every block on at most so many tokens at a time.

    Experts, and MLPs that are no module of their own, are left as they are. Results
    are those of the whole but for the rounding of sums.

    Args:
        module: A transformers model.
        anatomy: Its anatomy.
        n_tokens: Tokens of a piece.
    """
    found = _mlps(module, anatomy)
    before = [vars(mlp).get("forward") for mlp in found]
    try:
        for mlp in found:
            mlp.forward = _in_pieces(mlp.forward, n_tokens)
        yield
    finally:
        for mlp, own in zip(found, before, strict=True):
            vars(mlp).pop("forward", None)
            if own is not None:
                mlp.forward = own


def _mlps(module: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    """The dense MLPs, each the parent of its down projection."""
    found = []
    for number, block in enumerate(blocks(module, anatomy, stream_site(anatomy))):
        try:
            name = down_projection(module, anatomy, number).name
        except UnsupportedModelError:
            continue
        if "." in name:
            found.append(block.get_submodule(name.rpartition(".")[0]))
    return found


def _in_pieces(forward: Callable[..., Any], n_tokens: int) -> Callable[..., Any]:
    """The same map of `[batch, token, d_model]`, part by part."""

    def run(states: Tensor, *others: Any, **options: Any) -> Any:
        if others or options or states.ndim != 3 or states.shape[1] <= n_tokens:
            return forward(states, *others, **options)
        whole = torch.empty_like(states)
        parts = states.split(n_tokens, 1), whole.split(n_tokens, 1)
        for given, room in zip(*parts, strict=True):
            room.copy_(forward(given.contiguous()))
        return whole

    return run
