"""Models of the server: loaded once, used by one job at a time."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from interp import catalog
from interp.app.explorer.memory import Shelf
from interp.models import Model, load

RECORDED = ("whisper",)
"""Beginnings of the names of catalog models that read sound."""


class Library:
    """Models by reference, within a limit of memory.

    Args:
        limit: Bytes of weights that may be held.
        device: As `interp.load` takes it.
    """

    def __init__(self, limit: int, device: str = "auto") -> None:
        self.shelf = Shelf(limit, _size)
        self._device = device
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def use(self, ref: str, tell: Callable[[str, int, int], None]) -> Iterator[Model]:
        """The model, for this job alone: interventions and taps exclude each other.

        Raises:
            InputError: As `interp.load` does; likewise the other errors.
        """
        lock = self._locks[ref]
        while not lock.acquire(timeout=0.3):
            tell(f"waiting for other work with {ref}", 0, 0)
        try:
            model = self.shelf.get(ref)
            if model is None:
                model = load(
                    ref, device=self._device, progress=lambda step: tell(step, 0, 0)
                )
                self.shelf.put(ref, model, f"model {model.name}")
            yield model
        finally:
            lock.release()


def readers() -> list[str]:
    """Models of the catalog that are here and read text."""
    names = [each.name for each in catalog.models()]
    return [n for n in names if not n.startswith(RECORDED) and catalog.installed(n)]


def _size(model: Model) -> int:
    """Bytes of the weights."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters())
