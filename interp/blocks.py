"""A map in square blocks: how blocks of one size become blocks of twice that size."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """A map, or a window of one, in square blocks.

    Attributes:
        size: Queries and keys of a block.
        mean: Mean weight over the visible pairs; NaN where there are none.
        largest: Largest weight, likewise.
        pairs: Visible pairs.
    """

    size: int
    mean: Float[Tensor, "row column"]
    largest: Float[Tensor, "row column"]
    pairs: Int[Tensor, "row column"]

    def doubled(self) -> "Blocks":
        """Blocks twice as large: the mean of means by pairs, the largest of largest."""
        total = (self.mean.double() * self.pairs).nan_to_num(0.0)
        pairs, total = (_in_fours(each).sum((1, 3)) for each in (self.pairs, total))
        largest = _in_fours(self.largest.nan_to_num(-1.0)).amax((1, 3))
        return Blocks(
            2 * self.size,
            (total / pairs).to(self.mean.dtype),
            largest.masked_fill(pairs == 0, torch.nan),
            pairs,
        )

    def part(self, rows: slice, columns: slice) -> "Blocks":
        """Some rows and columns of them."""
        arrays = (self.mean, self.largest, self.pairs)
        return Blocks(self.size, *(each[rows, columns] for each in arrays))


def _in_fours(blocks: Tensor) -> Tensor:
    """Blocks by the larger block that they fall into; 0 beyond the map."""
    n_rows, n_columns = blocks.shape
    padded = torch.nn.functional.pad(blocks, (0, n_columns % 2, 0, n_rows % 2))
    return padded.unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
