"""`interp bench tap`: what tracing costs, beside what a user would run instead.

Every figure comes from a process of its own: CPU seconds are then not another route's
waiting threads, and the peak of memory is this route's.
"""

import json
import signal
import subprocess
import sys
import time
from typing import Any

from interp.app.bench.table import device_name, markdown
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
    """The table of all routes and lengths, in Markdown.

    Args:
        model: Any reference that `interp.load` takes.
        lengths: Tokens.
        repeats: Forwards of each figure, of which the fastest counts.
        threads: Of the CPU.
        progress: Told of every measurement.
        command: How to make the table again.
    """
    cells: dict[tuple[str, int], dict[str, float] | None] = {}
    jobs = [(length, route) for length in lengths for route in ROUTES]
    for done, (length, route) in enumerate(jobs):
        progress("measuring", done, len(jobs))
        cells[route, length] = _measure(model, route, length, repeats, threads)
    progress("measuring", len(jobs), len(jobs))
    return _markdown(model, lengths, cells, threads, repeats, command)


def _measure(
    model: str, route: str, length: int, repeats: int, threads: int
) -> dict[str, float] | None:
    """CPU seconds, seconds and extra bytes of one route; None when memory is short."""
    job = [model, route, str(length), str(repeats), str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "interp.app.bench.tap", *job],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (OUT_OF_MEMORY, -signal.SIGKILL):
        return None
    if done.returncode:
        said = done.stderr.splitlines() or [f"it ended with {done.returncode}"]
        raise InterpError(f"Measuring {route} at {length:,} tokens failed: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


OUT_OF_MEMORY = 77
"""Exit code of a measurement that the machine has no memory for."""


def _markdown(
    model: str,
    lengths: list[int],
    cells: dict[tuple[str, int], dict[str, float] | None],
    threads: int,
    repeats: int,
    command: str,
) -> str:
    rows = []
    for length in lengths:
        base = cells["untraced", length]
        for route, words in ROUTES.items():
            cell = cells[route, length]
            if cell is None or base is None:
                rows.append([f"{length:,}", words, "not enough memory"])
                continue
            row = [f"{length:,}", words]
            for kind in ("cpu", "wall"):
                row += [f"{cell[kind]:.2f}", f"{cell[kind] / base[kind]:.2f}"]
            rows.append([*row, f"{cell['extra'] / 2**20:,.0f}"])
    return markdown(
        f"Tap: {model} on {device_name()}, {threads} threads",
        command,
        f"fastest of {repeats}. CPU seconds of the process; extra memory is the peak "
        "above the loaded model, in MiB; ratios are to the untraced forward of the "
        "same length.",
        ("tokens:", "route", "CPU s:", "ratio:", "s:", "ratio:", "extra MiB:"),
        rows,
    )


def _run(model: str, route: str, length: int, repeats: int, threads: int) -> None:
    """One measurement, in this process; prints it as JSON."""
    import torch

    import interp
    from interp.app.bench.inputs import forward as untraced
    from interp.app.bench.inputs import text_ids
    from interp.capture import Capture
    from interp.peak import peak_memory

    torch.set_num_threads(threads)
    loaded = interp.load(model)
    if route == "eager" and not _fits(loaded, length):
        sys.exit(OUT_OF_MEMORY)
    ids = text_ids(loaded, length)
    module = loaded.module
    if route == "eager":
        module.set_attn_implementation("eager")

    def forward(ids: Any = ids) -> None:
        if route in ("traced", "residual"):
            interp.trace(loaded, ids, capture=Capture(residual=route == "residual"))
            return
        untraced(module, ids, output_attentions=route == "eager")

    forward(ids[:64])  # first calls set up threads and caches
    best = {"cpu": float("inf"), "wall": float("inf")}
    with peak_memory() as peak:
        for _ in range(repeats):
            cpu, wall = time.process_time(), time.perf_counter()
            forward()
            best["cpu"] = min(best["cpu"], time.process_time() - cpu)
            best["wall"] = min(best["wall"], time.perf_counter() - wall)
    sys.stdout.write(json.dumps({**best, "extra": peak.n_bytes}) + "\n")


def _fits(model: Any, length: int) -> bool:
    """All maps, and the softmax of one layer in two copies, fit the free memory."""
    from interp.app.bench.clock import free_bytes

    heads = [site.n_heads for site in model.anatomy.sites]
    needed = (sum(heads) + 3 * max(heads)) * length**2 * 4
    return needed < 0.9 * free_bytes(model.device)


if __name__ == "__main__":
    try:
        _run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
    except InterpError as error:
        sys.exit(str(error))
