"""A text that a model writes and that is traced, shown while it grows."""

from pathlib import Path

import typer

from interp.app.progress import Progress
from interp.capture import Capture
from interp.generation import trace_generation
from interp.models import Model


class Shown:
    """Prints what each new token adds to a text, on stderr."""

    def __init__(self, model: Model, n_tokens: int, progress: Progress) -> None:
        self.model, self.n_tokens, self.progress = model, n_tokens, progress
        self.text = ""

    def __call__(self, ids: list[int]) -> None:
        """Told of all tokens that were generated."""
        if self.model.tokenizer is not None:
            text = str(self.model.tokenizer.decode(ids, skip_special_tokens=True))
            if not text.endswith("\ufffd"):  # else a character is not whole yet
                typer.echo(text[len(self.text) :], err=True, nl=False)
                self.text = text
        self.progress("writing", len(ids), self.n_tokens)


def write_and_trace(
    model: Model,
    prompt: str,
    n_tokens: int,
    capture: Capture | None,
    out: Path,
    name: str,
    progress: Progress,
) -> None:
    """Lets a model go on with a prompt, greedily, and traces both into a store.

    Ctrl-C leaves the tokens beside the store; the same command goes on with them.

    Args:
        model: With a language-model head.
        prompt: A text.
        n_tokens: How many new tokens at most.
        capture: What to record.
        out: The store.
        name: Of the prompt.
        progress: Told of every token and layer.
    """
    shown = Shown(model, n_tokens, progress)
    trace_generation(
        model,
        prompt,
        max_new_tokens=n_tokens,
        capture=capture,
        out=out,
        tell=shown,
        name=name,
        progress=lambda done, total: progress(name, done, total),
    )
    if shown.text:
        typer.echo(err=True)
