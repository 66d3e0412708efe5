"""The most memory that a stretch of work held, as Linux tells it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interp.errors import InterpError


@dataclass
class Peak:
    """Bytes above what was held when the work began."""

    n_bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures the block; one at a time in a process.

    Raises:
        InterpError: The system does not tell.
    """
    peak, before = Peak(), _reset()
    try:
        yield peak
    finally:
        peak.n_bytes = _status("VmHWM") - before


def _reset() -> int:
    """Forget the peak so far; bytes held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise InterpError(
            "This system does not tell the peak of memory. Measure on Linux."
        ) from error
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise InterpError(f"This system does not tell {name}. Measure on Linux.")
