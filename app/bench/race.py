"""Routes to the same end, measured one after the other in one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from interp.app.bench.clock import Cost, NotApplicable, attempt
from interp.app.progress import Progress


@dataclass(frozen=True)
class Entrant:
    """One route.

    Attributes:
        words: What the table calls it.
        is_base: Whether ratios may be to it: the fastest of these is 1.
        run: Its cost and the cells that follow it. Raises `NotApplicable` for what
            cannot be run here whatever the length.
    """

    words: str
    is_base: bool
    run: Callable[[], tuple[Cost, list[str]]]


def race(
    entrants: Sequence[Entrant], per_second: float, tell: Callable[[int, int], None]
) -> tuple[list[list[str]], dict[str, str]]:
    """Measures every route; one that fails does not stop the others.

    Args:
        entrants: In the order of the rows.
        per_second: Of the unit of time that the cells have.
        tell: Told how many are done, of how many.

    Returns:
        A row for each that was run (words, time, ratio, extra MiB, its own cells; or
        words and the reason of its failure), and why others were not run, by words.
    """
    results: list[tuple[Entrant, tuple[Cost, list[str]] | str]] = []
    not_run: dict[str, str] = {}
    for done, entrant in enumerate(entrants):
        tell(done, len(entrants))
        try:
            results.append((entrant, attempt(entrant.run)))
        except NotApplicable as reason:
            not_run[entrant.words] = str(reason)
    tell(len(entrants), len(entrants))
    base = min(
        (r[0].seconds for e, r in results if e.is_base and not isinstance(r, str)),
        default=None,
    )
    rows = []
    for entrant, result in results:
        if isinstance(result, str):
            rows.append([entrant.words, result])
            continue
        cost, cells = result
        ratio = "" if base is None else f"{cost.seconds / base:.2f}"
        time = f"{cost.seconds * per_second:,.3f}"
        rows.append([entrant.words, time, ratio, cost.extra_mib, *cells])
    return rows, not_run


def races(
    lengths: Sequence[int],
    line_up: Callable[[int], list[Entrant]],
    per_second: float,
    progress: Progress,
) -> tuple[list[list[str]], dict[str, str]]:
    """A race at each length, its rows led by the length.

    Args:
        lengths: Tokens.
        line_up: The routes at a length, with inputs that it makes.
        per_second: As in `race`.
        progress: Told of every route.
    """
    rows: list[list[str]] = []
    not_run: dict[str, str] = {}
    for length in lengths:
        step = f"{length:,} tokens"
        progress(step, 0, 0)
        entrants = attempt(lambda length=length: line_up(length))
        if isinstance(entrants, str):
            rows.append([f"{length:,}", "inputs", entrants])
            continue
        found, missing = race(
            entrants, per_second, lambda n, of, step=step: progress(step, n, of)
        )
        rows += [[f"{length:,}", *row] for row in found]
        not_run |= missing
    return rows, not_run
