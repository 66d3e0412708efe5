"""Routes to the same end, each measured in a process of its own.

CPU seconds are then not another route's waiting threads, and the peak of memory is
this route's.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from interp.app.bench.table import device_name, markdown
from interp.app.progress import Progress
from interp.errors import InterpError

OUT_OF_MEMORY = 77
"""Exit code of a measurement that the machine has no memory for."""

Cell = dict[str, float]
"""Seconds `wall` and `cpu`, bytes `extra`."""


def apart_table(
    what: str,
    module: str,
    routes: Mapping[str, str],
    model: str,
    lengths: list[int],
    repeats: int,
    threads: int,
    progress: Progress,
    command: str,
) -> str:
    """The table of all routes and lengths, in Markdown; ratios are to the first route.

    Args:
        what: Leads the title.
        module: Name of the module that is run for each figure, with model, route,
            length, repeats and threads; it ends in `told(...)`.
        routes: What is timed, and how the table calls it.
        model: Any reference that `interp.load` takes.
        lengths: Tokens.
        repeats: Runs of each figure, of which the fastest counts.
        threads: Of the CPU.
        progress: Told of every measurement.
        command: How to make the table again.

    Raises:
        InterpError: A measurement failed.
    """
    cells: dict[tuple[str, int], Cell | None] = {}
    jobs = [(length, route) for length in lengths for route in routes]
    for done, (length, route) in enumerate(jobs):
        progress("measuring", done, len(jobs))
        job = [model, route, str(length), str(repeats), str(threads)]
        cells[route, length] = _measure(module, job)
    progress("measuring", len(jobs), len(jobs))
    return markdown(
        f"{what}: {model} on {device_name()}, {threads} threads",
        command,
        f"fastest of {repeats}. CPU seconds of the process; extra memory is the peak "
        "above the loaded model, in MiB; ratios are to the first row of the same "
        "length.",
        ("tokens:", "route", "CPU s:", "ratio:", "s:", "ratio:", "extra MiB:"),
        rows(routes, lengths, cells),
    )


def rows(
    routes: Mapping[str, str],
    lengths: list[int],
    cells: Mapping[tuple[str, int], Cell | None],
) -> list[list[str]]:
    """A row for each length and route; None is a route that found no memory."""
    found = []
    for length in lengths:
        base = cells[next(iter(routes)), length]
        for route, words in routes.items():
            cell = cells[route, length]
            row = [f"{length:,}", words]
            if cell is None:
                found.append([*row, "not enough memory"])
                continue
            for kind in ("cpu", "wall"):
                ratio = "" if base is None else f"{cell[kind] / base[kind]:.2f}"
                row += [f"{cell[kind]:.2f}", ratio]
            found.append([*row, f"{cell['extra'] / 2**20:,.0f}"])
    return found


def _measure(module: str, job: list[str]) -> Cell | None:
    """What one process tells; None when memory is short."""
    done = subprocess.run(
        [sys.executable, "-m", module, *job],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (OUT_OF_MEMORY, -signal.SIGKILL):
        return None
    if done.returncode:
        said = done.stderr.splitlines() or [f"it ended with {done.returncode}"]
        _, route, length, *_ = job
        raise InterpError(
            f"Measuring {route} at {int(length):,} tokens failed: {said[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def told(run: Callable[[], object], repeats: int) -> None:
    """Measures some runs, in this process, and prints the fastest as JSON."""
    from interp.peak import peak_memory

    best = {"cpu": float("inf"), "wall": float("inf")}
    with peak_memory() as peak:
        for _ in range(repeats):
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            best["cpu"] = min(best["cpu"], time.process_time() - cpu)
            best["wall"] = min(best["wall"], time.perf_counter() - wall)
    sys.stdout.write(json.dumps({**best, "extra": peak.n_bytes}) + "\n")


def require_room_for_maps(model: object, length: int) -> None:
    """Ends the process where all maps, and one layer's softmax twice, do not fit."""
    from interp.app.bench.clock import free_bytes
    from interp.models import load

    loaded = load(model, device="cpu")
    heads = [site.n_heads for site in loaded.anatomy.sites]
    needed = (sum(heads) + 3 * max(heads)) * length**2 * 4
    if needed > 0.9 * free_bytes(loaded.device):
        sys.exit(OUT_OF_MEMORY)
