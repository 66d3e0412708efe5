"""Numbers as a reader wants them: three digits, thin words, no false precision."""

from collections.abc import Iterable
from itertools import groupby

import numpy as np

NOTHING = "—"


def number(value: float, digits: int = 3) -> str:
    """A number with that many significant digits; integers keep all of theirs."""
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace("-", "\N{MINUS SIGN}")
    if not np.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    size = int(np.floor(np.log10(abs(value))))
    if size >= digits:
        text = f"{round(value, digits - 1 - size):,.0f}"
    elif size >= 0:
        text = f"{value:.{digits - 1 - size}f}"
    elif size >= -6:
        text = f"{value:.{max(digits, digits - 2 - size)}f}"
    else:
        text = f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 3) -> str:
    """A number that tells its sign, as a change does."""
    return ("+" if value > 0 else "") + number(value, digits)


def decimals(value: float, count: int = 2) -> str:
    """A number with that many digits after the point, as a correlation has them."""
    if not np.isfinite(value):
        return NOTHING
    return f"{value:.{count}f}".replace("-", "\N{MINUS SIGN}")


def percent(fraction: float) -> str:
    """A fraction as a percentage: 0.304 is "30 %", 0.004 is "0.4 %"."""
    if not np.isfinite(fraction):
        return NOTHING
    value = 100 * fraction
    digits = 0 if abs(value) >= 1 or value == 0 else 1
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}%"


def interval(low: float, high: float, digits: int = 3) -> str:
    """Two bounds, or an em dash when either is unknown."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return NOTHING
    return f"{number(low, digits)} to {number(high, digits)}"


def plural(count: int, noun: str) -> str:
    """A count and its noun: "1 head", "1,024 tokens"."""
    return f"{number(int(count))} {noun}{'' if count == 1 else 's'}"


def ranges(indices: Iterable[int]) -> str:
    """Indices as text, runs joined by a dash: 3 and 5 to 7."""
    ordered = sorted(set(indices))
    runs = []
    for _, group in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0]):
        run = [index for _, index in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}\N{EN DASH}{run[-1]}")
    return ", ".join(runs) or NOTHING
