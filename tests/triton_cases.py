"""What tests of the GPU programs share: where they run, small tiles, poisoned memory.

With a CUDA device they run there, otherwise under Triton's interpreter on the CPU
(`conftest` asks for it), where a tile of any size takes about as long: shapes are small
there, and tiles too, so that even a small call crosses many of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest
import torch
from attention_cases import LENGTHS, moved
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interp.kernels import definitions as d
from interp.kernels import statistics
from interp.kernels.rules import AttentionCall

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton: install interp[triton]"
)
TRITON = pytest.param("triton", marks=needs_triton)

SMALL = LENGTHS if ON_GPU else (1, 7, 31, 33, 65)
"""Ugly lengths around the sides of the small tiles."""

WIDTHS = (8, 16, 20, 64, 72, 80, 96, 128, 256)
"""Widths of a head: powers of two, sums of two of them, and what has to be padded."""

TILES = ((16, 16), (32, 16), (16, 32), (32, 64))
"""Queries and keys of a tile."""


def run(
    call: AttentionCall,
    wanted: Sequence[d.Statistic],
    impl: str,
    lse: Tensor | None = None,
) -> dict[str, Tensor]:
    """`statistics.compute` where the implementation is at home; the arrays on CPU."""
    if impl == "triton":
        call = moved(call, DEVICE)
        lse = None if lse is None else lse.to(DEVICE)
        with Poisoned():
            arrays = statistics.compute(call, wanted, lse=lse, impl=impl)
        return {name: values.cpu() for name, values in arrays.items()}
    return statistics.compute(call, wanted, lse=lse, impl=impl)


@contextmanager
def triton_tiles(rows: int, keys: int) -> Iterator[None]:
    """Tiles of these sizes, whatever the tables say; nothing without Triton."""
    if find_spec("triton") is None:
        yield
        return
    from interp.kernels import triton_launch
    from interp.kernels.triton_tables import TileSizes

    sizes = TileSizes(_power(rows), _power(keys), 4, 2)
    with mock.patch.object(triton_launch, "tile_sizes", return_value=sizes):
        yield


def _power(number: int) -> int:
    """The next power of two; 16 is the least that a tile can have."""
    return max(1 << (number - 1).bit_length(), 16)


class Poisoned(TorchDispatchMode):
    """Fills fresh memory with NaN, or the largest integer: nobody may count on it."""

    FRESH = frozenset(
        {
            torch.ops.aten.empty,
            torch.ops.aten.empty_like,
            torch.ops.aten.empty_strided,
            torch.ops.aten.new_empty,
            torch.ops.aten.new_empty_strided,
        }
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in self.FRESH:
            if out.is_floating_point():
                out.fill_(torch.nan)
            elif out.dtype != torch.bool:
                out.fill_(torch.iinfo(out.dtype).max)
        return out
