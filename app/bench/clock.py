"""Time and memory of one piece of work, on a GPU or a CPU."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import TypeVar

import torch

from interp.errors import InputError

Result = TypeVar("Result")

FEWEST, MOST = 3, 100
"""Calls that are timed where nobody says how many."""

CACHE_BYTES = 1 << 28
"""Written between two calls on a GPU, so that none finds its inputs in the cache."""

REASON_LENGTH = 140
"""Characters of a reason that fit a cell."""


class NotApplicable(Exception):
    """A route cannot serve these inputs or this machine; the text says why."""


@dataclass(frozen=True)
class Effort:
    """How often each piece of work is timed.

    Attributes:
        repeats: Calls, or None for as many as fit the budget.
        budget_s: Seconds of timed calls, at least `FEWEST` of them.
    """

    repeats: int | None = None
    budget_s: float = 0.2

    def __str__(self) -> str:
        """As a table says it."""
        if self.repeats is not None:
            return f"median of {self.repeats}"
        return f"median of the calls in {self.budget_s:g} s, at least {FEWEST}"

    def calls(self, seconds: float) -> int:
        """Calls of work that takes so long."""
        fitting = math.ceil(self.budget_s / max(seconds, 1e-9))
        return self.repeats or min(max(fitting, FEWEST), MOST)


@dataclass(frozen=True)
class Cost:
    """What one call takes.

    Attributes:
        seconds: On a GPU by its events; on a CPU of all cores together.
        extra_bytes: Peak above what was held before, results included; None on a CPU.
    """

    seconds: float
    extra_bytes: int | None

    @property
    def extra_mib(self) -> str:
        """Cell of the extra memory; empty on a CPU."""
        return "" if self.extra_bytes is None else f"{self.extra_bytes / 2**20:,.0f}"


def measure(work: Callable[[], object], device: torch.device, effort: Effort) -> Cost:
    """Median time and peak memory of a call, after one that warms up."""
    with torch.no_grad():
        work()
        if device.type != "cuda":
            first = _cpu_seconds(work)
            rest = effort.calls(first) - 1
            times = [first, *(_cpu_seconds(work) for _ in range(rest))]
            return Cost(median(times), None)
        with torch.cuda.device(device):
            cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            first = _gpu_seconds(work, 1, cache)
            extra = torch.cuda.max_memory_allocated() - held
            rest = _gpu_seconds(work, effort.calls(first[0]) - 1, cache)
            return Cost(median([*first, *rest]), extra)


def _cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _gpu_seconds(
    work: Callable[[], object], calls: int, cache: torch.Tensor
) -> list[float]:
    """Of each call; none waits for the one before, as the host has to run ahead."""
    events = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        start.record()
        work()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def attempt(work: Callable[[], Result]) -> Result | str:
    """What the work returns, or in a few words why it failed here.

    Raises:
        InputError: The caller's mistake, which is no result.
    """
    try:
        return work()
    except InputError:
        raise
    except torch.cuda.OutOfMemoryError:
        reason = "out of memory"
    except _failures() as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].replace("|", "/")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason if len(reason) <= REASON_LENGTH else reason[: REASON_LENGTH - 1] + "…"


def _failures() -> tuple[type[Exception], ...]:
    """What foreign kernels and compilers raise for what they cannot do."""
    kinds = (
        AssertionError,
        AttributeError,
        ImportError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    )
    if find_spec("triton") is None:
        return kinds
    from triton.errors import TritonError

    return (*kinds, TritonError)


def require_memory(n_bytes: int, what: str, device: torch.device) -> None:
    """Refuses what would not fit: a CPU without memory ends the process.

    Raises:
        MemoryError: Naming both sizes.
    """
    free = free_bytes(device)
    if n_bytes > 0.9 * free:
        raise MemoryError(
            f"{what} needs {n_bytes / 2**30:,.1f} GiB; {free / 2**30:,.1f} GiB are free"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that new tensors could take."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
