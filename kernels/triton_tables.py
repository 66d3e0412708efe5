"""Tile sizes by program, head width and type, measured once: nothing is tuned later.

`interp bench tune` measures the alternatives on another device. The figures behind the
choices are in benchmarks/RESULTS.md; all are from Hopper GPUs. Those for older ones
were chosen by what the compiler says of registers, and are not measured.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TileSizes:
    """How a program cuts the map.

    Attributes:
        rows: Queries of a tile.
        keys: Keys of a tile.
        warps: Warps of a program.
        stages: Tiles in flight; where one is enough, more programs fit side by side.
        edge_warps: Warps where pairs are looked at one by one, which takes more
            registers a pair.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    edge_warps: int = 8


ROWS = {
    64: TileSizes(128, 128, 4, 3),
    128: TileSizes(128, 128, 4, 2),
    256: TileSizes(64, 64, 4, 2),
}
"""For `triton_rows` in half precision, by the widest head that each holds."""

COLUMNS = {
    64: TileSizes(64, 128, 4, 2),
    128: TileSizes(64, 128, 4, 1),
    256: TileSizes(64, 128, 4, 1),
}
"""For `triton_columns`."""

COLUMNS_AND_MAXIMA = {
    64: TileSizes(64, 128, 4, 3),
    128: TileSizes(64, 128, 4, 3),
    256: TileSizes(64, 128, 4, 1),
}
"""For `triton_columns` with each row's maximum, whose registers leave room for few
programs: those have to wait less."""

OLDER = {
    128: TileSizes(64, 64, 8, 2),
    256: TileSizes(64, 64, 8, 1),
}
"""For both programs before Hopper, where products need registers for their inputs."""

SINGLE = {
    128: TileSizes(64, 64, 4, 2),
    256: TileSizes(32, 32, 4, 2),
}
"""In single precision, whose tiles take twice the room and three products."""

ATTENTION = {
    64: TileSizes(128, 128, 8, 3),
    128: TileSizes(128, 128, 8, 2),
    256: TileSizes(64, 64, 4, 2),
}
"""For `triton_attention`, by the widest head of query and value that each holds."""

ATTENTION_IN_SINGLE = {128: TileSizes(64, 32, 4, 2), 256: TileSizes(32, 16, 4, 2)}
"""In single precision."""

FEW_ROWS = 16
"""Queries of a tile when decoding: enough for a tensor core."""

KEYS_OF_FEW_ROWS = 64
"""Keys of a tile of `triton_attention` then, at most."""


def tile_sizes(
    table: dict[int, TileSizes],
    n_queries: int,
    width: int,
    dtype: torch.dtype,
    is_hopper: bool = True,
) -> TileSizes:
    """Tile sizes of a call.

    Args:
        table: Of the program, in half precision.
        n_queries: Queries of the call.
        width: Of a head.
        dtype: Of query and key.
        is_hopper: Whether the GPU is of that generation, or a later one.
    """
    in_half = table if is_hopper else OLDER
    own = SINGLE if dtype == torch.float32 else in_half
    sizes = next(
        (s for limit, s in own.items() if width <= limit), TileSizes(16, 16, 4, 1, 4)
    )
    if n_queries <= FEW_ROWS:
        return TileSizes(FEW_ROWS, sizes.keys, 4, 3, 4)
    return sizes
