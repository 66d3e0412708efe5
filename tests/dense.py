"""Every statistic in the tests' own words: from dense weights, one line each.

Shares nothing with the package but the names: what it is held to is written here.
Arrays are `[head, query, key]` of one text without padding at its ends.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """The weights of one text, and what the definitions need beside them.

    Attributes:
        p: Weights, 0 where a pair does not exist.
        visible: Which pairs exist.
        lse: `[head, query]`, without a learned sink.
        distance: `[query, key]`, pos_query - pos_key.
        order: `[key]`, place of a key in the sequence, from 0.
    """

    p: Tensor
    visible: Tensor
    lse: Tensor
    distance: Tensor
    order: Tensor

    def arrays(
        self,
        *,
        clip: int = 10,
        first: int = 4,
        window: int = 128,
        near: int = 10,
        far: int = 50,
        size: int = 64,
        k: int = 8,
        last: int = 32,
        edges: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Every array by name; `edges` are `[query, target]` key indices, -1 none."""
        p, visible, distance = self.p, self.visible, self.distance
        sees = visible.any(-1)
        far_enough = visible & (distance >= near) & (distance <= far)
        rows = {
            "lse": self.lse,
            "entropy": -(p * p.clamp(min=1e-300).log()).sum(-1)
            if p.dtype == torch.float64
            else torch.special.entr(p).sum(-1),
            "distance": (p * distance).sum(-1),
            "waad": (p * distance.clamp(max=clip)).sum(-1),
            "sink_mass": p[..., (self.order >= 0) & (self.order < first)].sum(-1),
            "first_mass": p[..., self.order == 0].sum(-1),
            "local_mass": (p * (distance < window)).sum(-1),
            "max_mass": p.amax(-1) if p.shape[-1] else p.sum(-1),
        }
        arrays = {name: row.masked_fill(~sees, torch.nan) for name, row in rows.items()}
        arrays["received"] = p.sum(1) / visible.sum(1)
        arrays["received_late"] = p[:, -last:].sum(1) / visible[:, -last:].sum(1)
        arrays["received_max"] = p.amax(1).masked_fill(~visible.any(1), torch.nan)
        arrays["fai"] = (p * far_enough).sum(1) / far_enough.sum(1)
        arrays["pattern"] = p.masked_fill(~sees[..., None], torch.nan)
        arrays |= self._blocks(size) | {"top_mass": self._top(k)}
        if edges is not None:
            arrays["edges"] = self._edges(edges).masked_fill(
                ~sees[..., None], torch.nan
            )
        return arrays

    def _top(self, k: int) -> Tensor:
        seen = self.p.masked_fill(~self.visible, torch.nan)
        room = torch.nn.functional.pad(seen, (0, k), value=torch.nan)
        # Of the negated values the NaN are last, as the smallest weights should be.
        return -(-room).sort(-1).values[..., :k]

    def learned_sink(self, sink: Tensor | None) -> Tensor:
        """What the row leaves to the learned sink."""
        share = torch.zeros_like(self.lse)
        if sink is not None:
            share = (sink[:, None] - torch.logaddexp(self.lse, sink[:, None])).exp()
        return share.masked_fill(~self.visible.any(-1), torch.nan)

    def _edges(self, edges: list[Tensor]) -> Tensor:
        n_heads, n_query, _ = self.p.shape
        mass = self.p.new_full((n_heads, n_query, len(edges)), torch.nan)
        for edge, targets in enumerate(edges):
            for query, row in enumerate(targets.tolist()):
                keys = [key for key in row if key >= 0]
                if keys:
                    mass[:, query, edge] = self.p[:, query, keys].sum(-1)
        return mass

    def _blocks(self, size: int) -> dict[str, Tensor]:
        n_heads, n_query, n_key = self.p.shape
        rows, columns = -(-n_query // size), -(-n_key // size)
        mean = self.p.new_full((n_heads, rows, columns), torch.nan)
        largest = mean.clone()
        for row in range(rows):
            for column in range(columns):
                at = (
                    slice(None),
                    slice(row * size, (row + 1) * size),
                    slice(column * size, (column + 1) * size),
                )
                pairs = self.visible[at].sum((1, 2))
                mean[:, row, column] = self.p[at].sum((1, 2)) / pairs
                peak = self.p[at].amax((1, 2))
                largest[:, row, column] = peak.masked_fill(pairs == 0, torch.nan)
        return {"block_mean": mean, "block_max": largest}
