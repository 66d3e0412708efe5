"""Attention edges cut: from a set of tokens to a set of tokens, in some heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.anatomy import Site
from interp.errors import InputError
from interp.heads import HeadSet
from interp.interventions.intervention import Intervention, heads_at
from interp.kernels.edits import Block, Edit
from interp.kernels.rules import AttentionCall

Tokens = Sequence[int] | range | None
"""Places in each text, from 0; None for all of them."""


@dataclass(frozen=True, eq=False)
class CutEdges(Intervention):
    """Queries that no longer see some keys; the others share the weight.

    A query that would see nothing left keeps what it saw: attention to nothing has no
    meaning. Exact, in linear memory, in prefill and in decoding.

    Source: attention knockout (Geva et al. 2023, arXiv:2304.14767).

    Attributes:
        queries: Places of the tokens that look; None for all.
        keys: Places of the tokens looked at; None for all but the query's own.
        heads: Which heads; None for all heads of the site.
        site: Kind of attention, where no heads are given.
    """

    queries: Tokens = None
    keys: Tokens = None
    heads: HeadSet | None = None
    site: str = "self"

    def __post_init__(self) -> None:
        """Refuse a cut of nothing, and of everything."""
        for name in ("queries", "keys"):
            tokens = getattr(self, name)
            if tokens is not None and (len(tokens) == 0 or min(tokens) < 0):
                raise InputError(
                    f"Edges are cut between places of tokens, from 0 on; got {name}="
                    f"{tokens!r}. Name at least one token, or None for all."
                )

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """The cut, for the heads of this module."""
        if self.heads is None:
            heads = list(range(call.n_heads)) if site.name == self.site else []
        else:
            heads = heads_at(self.heads, site)
        return (_Cut(tuple(heads), self.queries, self.keys),) if heads else ()


@dataclass(frozen=True)
class _Cut(Edit):
    heads: tuple[int, ...]
    queries: Tokens
    keys: Tokens

    keeps_softmax = True

    def change_logits(self, logits: Tensor, block: Block) -> None:
        """Hides the pairs, except in rows that would be left blind."""
        start = block.mask.start
        looking = is_of(block.query - start, self.queries)
        cut = looking[:, None] & is_of(block.key - start, self.keys)
        if self.keys is None:
            cut &= block.key != block.query[:, None]
        left = (block.visible & ~cut).any(-1, keepdim=True)
        hidden = (cut & left).expand(block.visible.shape[0], *cut.shape)
        for head in own_heads(self.heads, block):
            logits[head].masked_fill_(hidden[head % len(hidden)], -torch.inf)


def own_heads(heads: Sequence[int], block: Block) -> list[int]:
    """Those of the heads that a block holds, counted within it."""
    first, last = block.heads.start, block.heads.stop
    return [head - first for head in heads if first <= head < last]


def is_of(
    places: Int[Tensor, "*batch token"], tokens: Tokens
) -> Bool[Tensor, "*batch token"]:
    """Which of the places are among the tokens."""
    if tokens is None:
        return torch.ones_like(places, dtype=torch.bool)
    return torch.isin(places, torch.tensor(list(tokens), device=places.device))
