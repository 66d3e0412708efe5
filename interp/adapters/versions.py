"""Says once that a package is of a version that nobody tried."""

import warnings
from functools import cache
from importlib.metadata import version


@cache
def warn_untested(package: str, first: str, beyond: str) -> None:
    """Warns, once, of a version outside the tested range.

    Args:
        package: Its distribution.
        first: The first version tested, such as `4.3`.
        beyond: The first not tested.
    """
    installed = version(package)
    if not _numbers(first) <= _numbers(installed) < _numbers(beyond):
        warnings.warn(
            f"{package} {installed} is installed; interp was tested with {first} up to,"
            f" not including, {beyond}. Compare a result with the bare model's.",
            stacklevel=3,
        )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".")[:2]]
