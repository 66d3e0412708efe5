"""`interp bench tune`: other tile sizes beside those that the tables name."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from interp.app.bench.clock import Cost, Effort, attempt, measure
from interp.app.bench.inputs import random_call
from interp.app.bench.table import device_name, markdown
from interp.app.progress import Progress
from interp.errors import InputError
from interp.kernels import definitions as d
from interp.kernels import fused, statistics

TABLES = {
    "rows": ("ROWS", d.ROWS),
    "columns": ("COLUMNS", d.COLUMNS),
    "all": ("COLUMNS_AND_MAXIMA", (*d.ROWS, *d.COLUMNS)),
}
"""Each table in `interp.kernels.triton_tables`, and statistics that it serves."""

HEADS, KV_HEADS = 32, 8


def tune_table(
    tokens: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    effort: Effort,
    progress: Progress,
    command: str,
) -> str:
    """Times of the alternatives for one head width, in Markdown.

    Raises:
        InputError: There is no GPU, or no table goes as wide.
    """
    if device.type != "cuda":
        raise InputError(
            f"Tile sizes matter on a GPU; the device is {device}. Run this where "
            "there is one."
        )
    call = random_call(tokens, HEADS, KV_HEADS, width, None, dtype, device)
    with torch.no_grad():
        done = fused.attend(call)
        lse = statistics.compute(call, [d.Lse()])["lse"] if done is None else done[1]
    jobs = [(name, sizes) for name in TABLES for sizes in _alternatives(name, width)]
    rows = []
    for number, (name, sizes) in enumerate(jobs):
        progress("measuring", number, len(jobs))
        wanted = TABLES[name][1]
        with _instead(name, width, sizes) as chosen:
            cost = attempt(
                lambda wanted=wanted: measure(
                    lambda: statistics.compute(call, wanted, lse=lse, impl="triton"),
                    device,
                    effort,
                )
            )
        tile = f"{sizes.rows} x {sizes.keys}"
        words = f"{tile}, {sizes.warps} warps, {sizes.stages} deep"
        result = f"{cost.seconds * 1e3:.2f}" if isinstance(cost, Cost) else cost
        rows.append([name, words, result, "in the table" if sizes == chosen else ""])
    progress("measuring", len(jobs), len(jobs))
    title = f"Tile sizes: heads of {width}, {str(dtype).removeprefix('torch.')}"
    return markdown(
        f"{title} on {device_name(device)}",
        command,
        f"device time at {tokens:,} tokens, {effort}; {HEADS}/{KV_HEADS} heads, "
        "causal, random, lse given.",
        ("program", "tile (queries x keys)", "ms:", ""),
        rows,
    )


def _alternatives(name: str, width: int) -> list:
    from interp.kernels import triton_tables

    own = _entry(name, width)[1]
    tiles = (64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 4), (128, 128, 8)
    others = [
        triton_tables.TileSizes(rows, keys, warps, stages)
        for rows, keys, warps in tiles
        for stages in (1, 2, 3)
    ]
    return [own, *(other for other in others if other != own)]


def _entry(name: str, width: int) -> tuple:
    """The width that a table's entry is for, and the entry."""
    from interp.kernels import triton_tables

    table = getattr(triton_tables, TABLES[name][0])
    found = [(limit, sizes) for limit, sizes in table.items() if width <= limit]
    if not found:
        raise InputError(
            f"--head-dim {width} is wider than the tables go ({max(table)}). Choose a "
            "narrower one."
        )
    return found[0]


@contextmanager
def _instead(name: str, width: int, sizes: object) -> Iterator[object]:
    """Another entry in a table, for a while; yields the one that belongs there."""
    from interp.kernels import triton_tables

    table = getattr(triton_tables, TABLES[name][0])
    limit, own = _entry(name, width)
    table[limit] = sizes
    try:
        yield own
    finally:
        table[limit] = own
