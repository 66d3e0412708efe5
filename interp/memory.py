"""Memory that was freed, handed back to the system at once."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""What glibc's `mallopt` calls them."""

SMALL, LARGEST = 1 << 20, 1 << 25
"""Bytes of a block that is handed back by itself; and up to which glibc raises that."""


@contextmanager
def frugal() -> Iterator[None]:
    """Blocks of a megabyte and more go back to the system as soon as they are freed.

    glibc else keeps them for later, in holes that later work may not fit: a forward
    over a long text then holds twice of what it needs. Does nothing where there is
    another C library.
    """
    _set(SMALL)
    try:
        yield
    finally:
        _set(LARGEST)


def _set(n_bytes: int) -> None:
    option = _mallopt()
    option(MMAP_THRESHOLD, n_bytes)
    option(TRIM_THRESHOLD, 2 * n_bytes)


@cache
def _mallopt() -> Callable[[int, int], object]:
    try:
        return ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return lambda _option, _value: None
