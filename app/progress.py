"""Progress of a command, as bars on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

Request = TypeVar("Request")

Progress = Callable[[str, int, int], None]
"""Told a step, how much of it is done, and of how much; 0 where nobody knows."""


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar for each step, on stderr if that is a terminal.

    An error clears the bars, so that its line stands alone.
    """
    screen = Console(stderr=True, highlight=False)
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=screen, disable=not screen.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def close() -> None:
            for task in bars.tasks:
                if task.total is None:
                    bars.update(task.id, completed=1, total=1)

        def update(step: str, done: int, total: int) -> None:
            """Without a total the step lasts until the next begins."""
            if step not in tasks:
                close()
                tasks[step] = bars.add_task(step, total=None)
            bars.update(tasks[step], completed=done, total=total or None)

        try:
            yield update
            close()
        except BaseException:
            bars.live.transient = True
            raise


def make_shown(
    what: str, make: Callable[[Request, Progress], tuple[Any, bool]], request: Request
) -> None:
    """Makes something behind bars, and prints where it lies.

    Args:
        what: What it is called where there was nothing left to do.
        make: Gives what to print, and whether it was complete before.
        request: What is to be made.
    """
    with progress_bars() as progress:
        made, already = make(request, progress)
    if already:
        typer.echo(f"This {what} is complete; nothing was left to do.", err=True)
    typer.echo(made)
