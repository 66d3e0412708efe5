"""Values that are kept within a limit of bytes, the least recently used out first."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

GIB = 1 << 30


class Shelf:
    """A place for values of any size; it says what it gave up, and for what.

    The newest value is always kept, however large. Safe to use from several threads.

    Args:
        limit: Bytes that may be held.
        weigh: Bytes of a value.
    """

    def __init__(self, limit: int, weigh: Callable[[Any], int]) -> None:
        self.limit = limit
        self.evictions: deque[str] = deque(maxlen=8)
        self._weigh = weigh
        self._held: OrderedDict[str, tuple[str, int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """The value of that key, which is now the latest used, or None."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][2]

    def put(self, key: str, value: Any, name: str) -> None:
        """Keep a value, and give up others until the limit holds.

        Args:
            key: Replaces what it had.
            value: What is kept.
            name: What it is called when it has to go.
        """
        size = self._weigh(value)
        with self._lock:
            self._held.pop(key, None)
            self._held[key] = name, size, value
            while self.used > self.limit and len(self._held) > 1:
                _, (old, freed, _) = self._held.popitem(last=False)
                self.evictions.append(
                    f"{old} ({freed / GIB:.2f} GiB) made room for {name}"
                )

    @property
    def used(self) -> int:
        """Bytes that are held."""
        return sum(size for _, size, _ in self._held.values())

    @property
    def names(self) -> list[str]:
        """What is held, the least recently used first."""
        return [name for name, _, _ in list(self._held.values())]
