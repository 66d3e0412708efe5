"""A change of attention that one pass can make: what interventions and policies ask.

An edge or a block knocked out, a sink removed or scaled, a temperature, an evicted key:
each is a bias on logits, or a factor on logits or weights.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels.edits import Block, Edit
from interp.kernels.errors import ShapeError
from interp.kernels.rules import AttentionCall


@dataclass(frozen=True, eq=False)
class Reweight(Edit):
    """`softmax(scale * logit + key_bias + tile_bias) * key_factor`, all optional.

    A bias of -inf takes pairs away: the rest of the row shares their weight. A factor
    of 0 only drops what they would bring. A learned sink stays as the model has it.

    Source: biases and factors are those of ZeroTuning (weights of the first token
    scaled and renormalised: a bias of `ln factor`), of edges knocked out (-inf), and
    of block-sparse policies (a tile bias of 0 and -inf).

    Attributes:
        key_bias: `[batch or 1, head or 1, key]`, nats, added to a key's logits.
        tile_bias: `[batch or 1, head or 1, query_block, key_block]`, nats, added to
            all logits of a block. Blocks count from the call's first query and key.
        size: Queries and keys of a block.
        key_factor: `[batch or 1, head or 1, key]`, on the weights after the softmax;
            rows are not normalised again.
        scale: `[head]`, factor on the logits, an inverse temperature.
        first: Query and key, counted within their blocks, with which the call begins.
    """

    key_bias: Float[Tensor, "#batch #head key"] | None = None
    tile_bias: Float[Tensor, "#batch #head query_block key_block"] | None = None
    size: int | None = None
    key_factor: Float[Tensor, "#batch #head key"] | None = None
    scale: Float[Tensor, " head"] | None = None
    first: tuple[int, int] = (0, 0)

    def check(self, call: AttentionCall) -> None:
        """Refuse what does not fit a call.

        Raises:
            ShapeError: A part is not of the call's shape; blocks have no size.
        """
        batch, heads, queries, _ = call.query.shape
        keys = call.key.shape[2]
        for name in ("key_bias", "key_factor"):
            _fits(name, getattr(self, name), (batch, heads, keys), 2)
        _fits("scale", self.scale, (heads,), 0)
        size = self.size
        if (self.tile_bias is None) != (size is None) or (
            size is not None and size < 1
        ):
            shape = None if self.tile_bias is None else tuple(self.tile_bias.shape)
            raise ShapeError(
                "A tile_bias and the size of its blocks, 1 token or more, go together; "
                f"got tile_bias {shape} and size {size}. Pass both or neither."
            )
        if size is not None:
            first_query, first_key = self.first
            blocks = -(-(first_query + queries) // size), -(-(first_key + keys) // size)
            _fits("tile_bias", self.tile_bias, (batch, heads, *blocks), 2)

    def narrow(self, sample: int, queries: slice, keys: slice) -> "Reweight":
        """Of one sample's queries and keys; the batch axis stays, of size 1."""
        narrowed = replace(
            self,
            key_bias=_own(self.key_bias, sample, keys),
            key_factor=_own(self.key_factor, sample, keys),
        )
        if self.tile_bias is None or self.size is None:
            return narrowed
        blocks, first = [], []
        for tokens, skipped in zip((queries, keys), self.first, strict=True):
            begin, end = skipped + tokens.start, skipped + tokens.stop
            blocks.append(slice(begin // self.size, -(-end // self.size)))
            first.append(begin % self.size)
        tile_bias = _own(self.tile_bias, sample, *blocks)
        return replace(narrowed, tile_bias=tile_bias, first=(first[0], first[1]))

    def change_logits(
        self, logits: Float[Tensor, "head query key"], block: Block
    ) -> None:
        """Changes the logits of a block, of the only sample, in place."""
        q0, q1, k0, k1 = block.box
        heads = block.heads
        if self.scale is not None:
            scale = self.scale[heads, None, None].to(logits)
            if scale.all():
                logits.mul_(scale)
            else:  # 0 * -inf would be NaN where an edit before took a pair away
                gone = logits == -torch.inf
                logits.mul_(scale).masked_fill_(gone, -torch.inf)
        if self.key_bias is not None:
            logits.add_(_of_heads(self.key_bias, heads)[:, None, k0:k1].to(logits))
        if self.tile_bias is not None and self.size is not None:
            first_query, first_key = self.first
            query = torch.arange(q0 + first_query, q1 + first_query)
            key = torch.arange(k0 + first_key, k1 + first_key)
            blocks = _of_heads(self.tile_bias, heads)
            rows = blocks[:, (query // self.size).to(blocks.device)]
            logits.add_(rows[..., (key // self.size).to(blocks.device)].to(logits))

    def change_weights(
        self, weights: Float[Tensor, "head query key"], block: Block
    ) -> None:
        """Changes the weights of a block, of the only sample, in place."""
        if self.key_factor is not None:
            _, _, k0, k1 = block.box
            factor = _of_heads(self.key_factor, block.heads)
            weights.mul_(factor[:, None, k0:k1].to(weights))

    @property
    def hides(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it can take pairs away."""
        return self.key_bias is not None or self.tile_bias is not None

    @property
    def keeps_softmax(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether no weight is changed after the softmax."""
        return self.key_factor is None


def _fits(name: str, part: Tensor | None, shape: tuple[int, ...], shared: int) -> None:
    """Refuse a part of another shape; the first `shared` axes may be 1."""
    if part is None:
        return
    got = tuple(part.shape)
    if len(got) == len(shape) and all(
        own == wanted or (own == 1 and axis < shared)
        for axis, (own, wanted) in enumerate(zip(got, shape, strict=True))
    ):
        return
    may = " (batch and head may be 1)" if shared else ""
    raise ShapeError(
        f"{name} needs shape {shape} for this call; got {got}. Pass one value for each "
        f"of these{may}."
    )


def _own(part: Tensor | None, sample: int, *places: slice) -> Tensor | None:
    """The part of one sample."""
    if part is None:
        return None
    row = slice(sample, sample + 1) if part.shape[0] > 1 else slice(None)
    return part[(row, slice(None), *places)]


def _of_heads(part: Tensor, heads: slice) -> Tensor:
    """The part of some heads, without the batch axis."""
    return part[0, heads] if part.shape[1] > 1 else part[0]
