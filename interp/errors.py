"""Errors that a caller can cause, each naming what was asked, what came, what to do."""

from interp.kernels.errors import InterpError, KernelUnavailableError, ShapeError

__all__ = [
    "InputError",
    "InterpError",
    "KernelUnavailableError",
    "NotCapturedError",
    "ShapeError",
    "StorageError",
    "UnsupportedModelError",
]


class InputError(InterpError, ValueError):
    """A text, file or option given by the caller cannot be used."""


class UnsupportedModelError(InterpError, TypeError):
    """The model cannot be loaded or traced; the message names the reason."""


class NotCapturedError(InterpError, LookupError):
    """A result needs something that the trace does not hold."""


class StorageError(InterpError, ValueError):
    """A store is truncated, foreign, or holds the results of another run."""
