"""Errors of the tensor floor; `interp.errors` adds those of models and files."""


class InterpError(Exception):
    """Root of every error raised on purpose; the command line shows it as one line."""


class ShapeError(InterpError, ValueError):
    """A tensor or option has a shape or value that cannot be used."""


class KernelUnavailableError(InterpError, RuntimeError):
    """The chosen implementation cannot run here; the message names one that can."""
