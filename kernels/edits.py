"""What a change of attention weights is, and the block of weights that it is given."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.kernels.masks import MaskRule


@dataclass(frozen=True)
class Block:
    """Some queries of some heads, and the keys they may see.

    Attributes:
        sample: Index in the batch.
        heads: Which query heads.
        box: `q0, q1, k0, k1`: queries and keys, counted in `mask`.
        mask: Which pairs exist, of this sample.
        device: Where the block's weights are.
    """

    sample: int
    heads: slice
    box: tuple[int, int, int, int]
    mask: MaskRule
    device: torch.device

    @cached_property
    def query(self) -> Int[Tensor, " query"]:
        """Absolute positions of the queries."""
        q0, q1, _, _ = self.box
        return torch.arange(q0, q1, device=self.device) + self.mask.query_offset

    @cached_property
    def key(self) -> Int[Tensor, " key"]:
        """Absolute positions of the keys."""
        _, _, k0, k1 = self.box
        return torch.arange(k0, k1, device=self.device) + self.mask.key_offset

    @cached_property
    def visible(self) -> Bool[Tensor, "#head query key"]:
        """Which pairs exist."""
        visible = self.mask.tile(*self.box)
        if visible is None:
            q0, q1, k0, k1 = self.box
            return torch.ones(1, q1 - q0, k1 - k0, dtype=torch.bool, device=self.device)
        own = self.heads if visible.shape[1] > 1 else slice(None)
        return visible[0, own].to(self.device)


class Edit:
    """A change of attention weights, made block by block: in linear memory, exact.

    A subclass changes the logits before the softmax, the weights after it, or both.

    Attributes:
        hides: Whether a logit may become -inf, which takes the pair away.
        keeps_softmax: Whether weights stay the softmax of the logits.
    """

    hides: bool = True
    keeps_softmax: bool = False

    def narrow(self, sample: int, queries: slice, keys: slice) -> "Edit":
        """The edit of one sample's queries and keys."""
        return self

    def change_logits(
        self, logits: Float[Tensor, "head query key"], block: Block
    ) -> None:
        """Changes the logits, nats, of a block in place; hidden pairs are any number.

        Args:
            logits: Of `block`, scaled, capped and biased as the model does.
            block: Where they are.
        """

    def change_weights(
        self, weights: Float[Tensor, "head query key"], block: Block
    ) -> None:
        """Changes the weights of a block in place; arguments as `change_logits`."""
