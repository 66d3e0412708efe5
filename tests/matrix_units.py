"""Products of half-precision numbers as the matrix units of a GPU sum them.

Sixteen exact products at a time are added to a sum in float32, and what does not fit is
cut off, not rounded. A dense computation that does so is as honest a twin as one on the
CPU.
"""

import torch
from torch import Tensor

THERE = torch.cuda.is_available()

STEP = 16


def products(query: Tensor, key: Tensor) -> Tensor:
    """`query @ key.mT` in float32."""
    query, key = query.double(), key.double()
    total = query.new_zeros(())
    for part in range(0, query.shape[-1], STEP):
        at = slice(part, part + STEP)
        total = _cut(total + query[..., at] @ key[..., at].mT)
    return total.float()


def _cut(exact: Tensor) -> Tensor:
    near = exact.float()
    less = torch.nextafter(near, torch.zeros_like(near))
    return torch.where(near.double().abs() > exact.abs(), less, near).double()
