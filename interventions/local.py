"""Heads that see only where a text begins and what is recent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.anatomy import Site
from interp.errors import InputError
from interp.heads import HeadSet
from interp.interventions.edges import own_heads
from interp.interventions.intervention import Intervention, heads_at
from interp.kernels.edits import Block, Edit
from interp.kernels.rules import AttentionCall


@dataclass(frozen=True, eq=False)
class LocalHeads(Intervention):
    """Heads that see the first tokens of a text, the last ones, and nothing between.

    What a cache of sinks and a window would leave of a head. Exact, in prefill and in
    decoding; in an encoder `recent` counts to both sides.

    Source: streaming heads of DuoAttention (arXiv:2410.10819); RazorAttention's
    (arXiv:2407.15891) without its compensation token.

    Attributes:
        heads: Which heads.
        recent: Tokens seen up to the query's own, itself included; at least 1.
        first: Tokens seen from where the text begins, padding not counted.
    """

    heads: HeadSet
    recent: int = 256
    first: int = 4

    def __post_init__(self) -> None:
        """Refuse a query without itself, and heads whose keys are another text."""
        if self.recent < 1 or self.first < 0:
            raise InputError(
                "A local head sees itself and 0 or more first tokens; got "
                f"recent={self.recent}, first={self.first}. Take recent from 1 on."
            )
        if self.heads.grid.site == "cross":
            raise InputError(
                "What is recent was asked for of cross-attention, whose keys are of "
                "another text. Choose heads of self-attention."
            )

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """All else hidden, for the heads of this module."""
        heads = heads_at(self.heads, site)
        return (_Local(tuple(heads), self.recent, self.first),) if heads else ()


@dataclass(frozen=True)
class _Local(Edit):
    heads: tuple[int, ...]
    recent: int
    first: int

    keeps_softmax = True

    def change_logits(self, logits: Tensor, block: Block) -> None:
        far = (block.query[:, None] - block.key).abs() >= self.recent
        far &= block.key - block.mask.start >= self.first
        for head in own_heads(self.heads, block):
            logits[head].masked_fill_(far, -torch.inf)
