"""Queries and keys as the GPU programs read them, tile by tile."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Operand:
    """Query or key of one sample as the programs read it.

    Attributes:
        values: `[head, token, d]`, aligned, d contiguous.
        width: Of a head.
        main: Width of the first part of a tile, a power of two.
        rest: Width of the second part, 0 for none.
        step: Columns from head to head where a row holds all heads.
    """

    values: Float[Tensor, "head token d"]
    width: int
    main: int
    rest: int

    @classmethod
    def of(cls, values: Float[Tensor, "head token d"]) -> "Operand":
        """Copies only what a bulk copy cannot read in place."""
        if values.dtype == torch.bfloat16 and not values.is_cuda:
            values = values.float()  # the interpreter multiplies its bits as integers
        width = values.shape[-1]
        main = max(1 << (width.bit_length() - 1), 16)
        rest = 0 if width <= main else max(power_of_two(width - main), 16)
        room = main + rest - width
        unit = 16 // values.element_size()
        aligned = values.data_ptr() % 16 == 0 and values.stride(-1) == 1
        aligned &= all(step % unit == 0 for step in values.stride()[:2])
        small = (values.shape[0] - 1) * values.stride(0) < 2**31
        if room or not (aligned and small):
            tokens = values.transpose(0, 1)
            padded = pad(tokens, (0, room)).contiguous()
            values = padded.transpose(0, 1)
        return cls(values, width, main, rest)

    @property
    def step(self) -> int:
        """Columns from head to head."""
        return self.values.stride(0)

    def rows(self, first: int, last: int) -> "Operand":
        """Some tokens."""
        return replace(self, values=self.values[:, first:last])

    def tiles(self, n_tokens: int) -> tuple[TensorDescriptor, TensorDescriptor]:
        """Descriptors of both parts of a tile; a row spans the heads."""
        n_heads, length, width = self.values.shape
        token = max(self.values.stride(1), width)
        shape = [length, (n_heads - 1) * self.step + width]
        first = TensorDescriptor(self.values, shape, [token, 1], [n_tokens, self.main])
        if not self.rest:
            return first, first
        return first, TensorDescriptor(
            self.values, shape, [token, 1], [n_tokens, self.rest]
        )


def power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()
