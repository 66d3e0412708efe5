"""`interp bench rhythm`: what the rhythm of a text costs beside an untraced forward."""

import sys

from interp.app.bench.apart import apart_table, require_room_for_maps, told
from interp.app.progress import Progress
from interp.errors import InterpError

ROUTES = {
    "untraced": "forward, SDPA",
    "rhythm": "rhythm: WAAD, FAI at three horizons, receivers, entropy, coupling",
    "eager": "forward, eager with output_attentions, nothing computed from it",
}
"""What is timed, and how the table calls it."""


def rhythm_table(
    model: str,
    lengths: list[int],
    repeats: int,
    threads: int,
    progress: Progress,
    command: str,
) -> str:
    """The table of all routes and lengths, in Markdown; arguments as `apart_table`."""
    return apart_table(
        "Rhythm", __name__, ROUTES, model, lengths, repeats, threads, progress, command
    )


def _run(model: str, route: str, length: int, repeats: int, threads: int) -> None:
    """One measurement, in this process; prints it as JSON."""
    import torch

    import interp
    from interp.app.bench.inputs import forward, text_ids
    from interp.probes.preplan import rhythm
    from interp.tasks import Item

    torch.set_num_threads(threads)
    loaded = interp.load(model, device="cpu")
    ids = text_ids(loaded, length)
    if route == "eager":
        require_room_for_maps(loaded, length)
        loaded.module.set_attn_implementation("eager")

    def run(n_tokens: int = length) -> None:
        if route == "rhythm":
            words = tuple(ids[:n_tokens].tolist())
            rhythm(loaded, Item("text", words, (1, n_tokens)))
        else:
            forward(loaded.module, ids[:n_tokens], output_attentions=route == "eager")

    run(min(64, length))  # first calls set up threads and caches
    told(run, repeats)


if __name__ == "__main__":
    try:
        _run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
    except InterpError as error:
        sys.exit(str(error))
