"""`interp bench tap`: what tracing costs, beside what a user would run instead."""

import sys
from typing import Any

from interp.app.bench.apart import apart_table, require_room_for_maps, told
from interp.app.progress import Progress
from interp.errors import InterpError

ROUTES = {
    "untraced": "forward, SDPA",
    "traced": "interp.trace: every row and column statistic, edges",
    "residual": "interp.trace: the same and the residual stream",
    "eager": "forward, eager with output_attentions, nothing computed from it",
}
"""What is timed, and how the table calls it."""


def tap_table(
    model: str,
    lengths: list[int],
    repeats: int,
    threads: int,
    progress: Progress,
    command: str,
) -> str:
    """The table of all routes and lengths, in Markdown; arguments as `apart_table`."""
    return apart_table(
        "Tap", __name__, ROUTES, model, lengths, repeats, threads, progress, command
    )


def _run(model: str, route: str, length: int, repeats: int, threads: int) -> None:
    """One measurement, in this process."""
    import torch

    import interp
    from interp.app.bench.inputs import forward as untraced
    from interp.app.bench.inputs import text_ids
    from interp.capture import Capture

    torch.set_num_threads(threads)
    loaded = interp.load(model, device="cpu")
    ids = text_ids(loaded, length)
    module = loaded.module
    if route == "eager":
        require_room_for_maps(loaded, length)
        module.set_attn_implementation("eager")

    def forward(ids: Any = ids) -> None:
        if route in ("traced", "residual"):
            interp.trace(loaded, ids, capture=Capture(residual=route == "residual"))
            return
        untraced(module, ids, output_attentions=route == "eager")

    forward(ids[:64])  # first calls set up threads and caches
    told(forward, repeats)


if __name__ == "__main__":
    try:
        _run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
    except InterpError as error:
        sys.exit(str(error))
