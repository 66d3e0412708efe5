"""How q.k becomes a logit, and what one attention call is made of."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.kernels.errors import ShapeError
from interp.kernels.masks import MaskRule


@dataclass(frozen=True, eq=False)
class ScoreRule:
    """How q.k becomes a logit: `softcap(scale * q.k) + position_bias`.

    Attributes:
        scale: Factor on q.k, as the model passes it.
        softcap: `softcap * tanh(score / softcap)` when given.
        sink_logits: `[head]`, a learned logit that joins the softmax and is dropped.
        position_bias: `[batch or 1, head or 1, query, key]`, added to the score.
    """

    scale: float
    softcap: float | None = None
    sink_logits: Float[Tensor, " head"] | None = None
    position_bias: Float[Tensor, "#batch #head query key"] | None = None


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention call: tensors and the rules between them.

    Attributes:
        query: `[batch, head, query, d]`, after rotary embedding and normalization.
        key: `[batch, kv_head, key, d]`, not expanded to the query heads.
        value: `[batch, kv_head, key, d_value]`.
        score: How q.k becomes a logit.
        mask: Which pairs exist.
        comparable: True when query and key positions share one sequence, as in
            self-attention; False for cross-attention.
    """

    query: Float[Tensor, "batch head query d"]
    key: Float[Tensor, "batch kv_head key d"]
    value: Float[Tensor, "batch kv_head key d_value"]
    score: ScoreRule
    mask: MaskRule
    comparable: bool = True

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together.

        Raises:
            ShapeError: Naming both shapes.
        """
        q, k, v = (tuple(t.shape) for t in (self.query, self.key, self.value))
        remedy = "Pass query [batch, head, query, d] and unexpanded key and value."
        if not len(q) == len(k) == len(v) == 4:
            raise ShapeError(
                f"An attention call has 4 axes; got query {q}, key {k}. {remedy}"
            )
        if q[0] != k[0] or q[3] != k[3] or q[1] % k[1] or k[:3] != v[:3]:
            raise ShapeError(
                f"query {q}, key {k} and value {v} do not belong together. {remedy}"
            )
        if (self.mask.query_length, self.mask.key_length) != (q[2], k[2]):
            raise ShapeError(
                f"The mask rule is for {self.mask.query_length} queries and "
                f"{self.mask.key_length} keys; got {q[2]} and {k[2]}. {remedy}"
            )

    @property
    def n_batch(self) -> int:
        """Number of samples."""
        return self.query.shape[0]

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return self.query.shape[1]

    @property
    def group_size(self) -> int:
        """Query heads that share one key and value head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type to accumulate in: float32 at least."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def narrow(self, sample: int, queries: slice, keys: slice) -> "AttentionCall":
        """The call of one sample's real tokens; the batch axis stays, of size 1."""
        bias = self.score.position_bias
        if bias is not None:
            row = slice(sample, sample + 1) if bias.shape[0] > 1 else slice(None)
            bias = bias[row, :, queries, keys]
        one = slice(sample, sample + 1)
        return replace(
            self,
            query=self.query[one, :, queries],
            key=self.key[one, :, keys],
            value=self.value[one, :, keys],
            score=replace(self.score, position_bias=bias),
            mask=self.mask.narrow(sample, queries, keys),
        )

    def rows(self, q0: int, q1: int) -> "AttentionCall":
        """The call of queries q0..q1-1 of every sample."""
        bias = self.score.position_bias
        bias = None if bias is None else bias[..., q0:q1, :]
        return replace(
            self,
            query=self.query[:, :, q0:q1],
            score=replace(self.score, position_bias=bias),
            mask=self.mask.rows(q0, q1),
        )

    def samples(self) -> list[tuple[int, slice, slice]]:
        """Each sample with its queries and keys, padding at either end cut off."""
        mask = self.mask
        # Kept: to find spans is to wait for the device.
        spans = mask.kept(
            ("spans",), lambda: (_spans(mask.query_padding), _spans(mask.key_padding))
        )
        queries = spans[0] or [slice(0, mask.query_length)] * self.n_batch
        keys = spans[1] or [slice(0, mask.key_length)] * self.n_batch
        return list(zip(range(self.n_batch), queries, keys, strict=True))


def _spans(real: Bool[Tensor, "batch token"] | None) -> list[slice] | None:
    """From the first to the last real token of each sample; None when all are.

    Where none is real it is one token, that nothing sees: no axis is ever empty.
    """
    if real is None:
        return None
    spans = []
    for row in real.cpu():
        at = row.nonzero().flatten()
        spans.append(slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 1))
    return spans
