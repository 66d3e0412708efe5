"""`interp bench generation`: what tracing costs a text that a model writes."""

import sys
from typing import Any

from interp.app.bench.apart import apart_table, told
from interp.app.progress import Progress
from interp.errors import InterpError

ROUTES = {
    "plain": "transformers' generate, greedy",
    "traced": "interp.trace_generation: every row and column statistic, edges, "
    "residual stream",
}
"""What is timed, and how the table calls it."""

PROMPT = 64
"""Tokens of the prompt, the first of the shipped text."""


def generation_table(
    model: str,
    lengths: list[int],
    repeats: int,
    threads: int,
    progress: Progress,
    command: str,
) -> str:
    """The table of both routes, in Markdown.

    Args:
        model: Any reference that `interp.load` takes.
        lengths: How many new tokens; the text goes on beyond its end.
        repeats: Of each figure, of which the fastest counts.
        threads: Of the CPU.
        progress: Told of every measurement.
        command: How to make the table again.

    Raises:
        InterpError: A measurement failed.
    """
    what = f"Generation after {PROMPT} tokens"
    return apart_table(
        what, __name__, ROUTES, model, lengths, repeats, threads, progress, command
    )


def _run(model: str, route: str, length: int, repeats: int, threads: int) -> None:
    """One measurement, in this process."""
    import torch

    import interp
    from interp.app.bench.inputs import text_ids

    torch.set_num_threads(threads)
    loaded = interp.load(model, device="cpu")
    module: Any = loaded.module
    prompt = text_ids(loaded, PROMPT)[None]
    # No end token: every route makes exactly as many tokens.
    options: dict[str, Any] = {"eos_token_id": [], "pad_token_id": 0}

    def write(n_new: int = length) -> None:
        if route == "traced":
            interp.trace_generation(loaded, prompt, max_new_tokens=n_new, **options)
            return
        with torch.no_grad():
            real = torch.ones_like(prompt)
            greedy = {**options, "do_sample": False, "max_new_tokens": n_new}
            module.generate(prompt, attention_mask=real, **greedy)

    write(4)  # first calls set up threads and caches
    told(write, repeats)


if __name__ == "__main__":
    try:
        _run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
    except InterpError as error:
        sys.exit(str(error))
