"""What one server holds for all its sessions, and what it was told at its start."""

import hashlib
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.app.explorer.jobs import Board
from interp.app.explorer.memory import GIB, Shelf
from interp.app.explorer.models import Library
from interp.tasks.reading import ORCHARD, SHIPPED, shipped
from interp.viz.tokens import visible

MODEL = "smollm2-135m"
"""What is opened when nothing is named."""

PASTED = 200
"""Pasted texts that are kept, the latest used."""


@dataclass(frozen=True)
class Settings:
    """What the command line named.

    Attributes:
        stores: Atlases and traces that may be opened.
        model: What runs pasted text.
        device: As `interp.load` takes it.
        memory: GiB for models, and half as many for results.
    """

    stores: tuple[Path, ...] = ()
    model: str = MODEL
    device: str = "auto"
    memory: float = 8.0


@dataclass
class Texts:
    """Texts by label: shipped ones, and pasted ones, whose label nobody can guess."""

    _pasted: OrderedDict[str, str] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, text: str) -> str:
        """Keep a text; its label."""
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:20]
        label = f"{visible(' '.join(text.split()), 24)} #{digest}"
        with self._lock:
            self._pasted[label] = text
            self._pasted.move_to_end(label)
            while len(self._pasted) > PASTED:
                self._pasted.popitem(last=False)
        return label

    def get(self, label: str) -> str | None:
        """The text of that label, or None."""
        if label in (SHIPPED, ORCHARD):
            return shipped(label)
        return self._pasted.get(label)


class Server:
    """Models, results, jobs and texts of one process.

    Args:
        settings: What the command line named.
    """

    def __init__(self, settings: Settings) -> None:
        limit = int(settings.memory * GIB)
        self.settings = settings
        self.library = Library(limit, settings.device)
        self.results = Shelf(limit // 2, _nbytes)
        self.jobs = Board(self.results)
        self.texts = Texts()
        self.uploads: dict[str, Path] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="interp-explorer-"))

    @property
    def evictions(self) -> list[str]:
        """What was given up for want of memory, the latest last."""
        return [*self.library.shelf.evictions, *self.results.evictions]


def configure(settings: Settings) -> Server:
    """Make the server of this process, before its first session."""
    global _server
    _server = Server(settings)
    return _server


def server() -> Server:
    """The server of this process."""
    return _server if _server is not None else configure(Settings())


_server: Server | None = None


def _nbytes(value: Any) -> int:
    """Bytes of a result, as it or its arrays tell."""
    return int(getattr(value, "nbytes", 0)) or 1 << 16
