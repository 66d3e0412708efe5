"""What a published claim is, what is measured to test it, and the rule that judges it.

A claim says what should be found: a quantity inside a range. What was measured agrees
if its whole interval lies in the range, disagrees if the whole interval lies outside,
and decides nothing otherwise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

from interp.probes.experiment import Progress
from interp.uncertainty import bootstrap_interval, statistic_interval

if TYPE_CHECKING:
    from interp.models import Model

HOLDS = "holds"
IN_PART = "holds in part"
FAILS = "does not hold here"
UNTESTED = "cannot be tested here"
VERDICTS = (HOLDS, IN_PART, FAILS, UNTESTED)


@dataclass(frozen=True)
class Evidence:
    """One measured quantity, and the range in which the claim has it."""

    what: str
    """What is measured, as a phrase."""
    unit: str
    value: float
    low: float
    """Of the 95 % bootstrap interval; NaN without one."""
    high: float
    over: str
    """What was resampled, such as "12 texts"."""
    least: float | None = None
    """The claim has it at this or above; None: no such bound."""
    most: float | None = None
    """... at this or below."""

    @classmethod
    def mean(
        cls,
        what: str,
        unit: str,
        values: xr.DataArray | np.ndarray | Sequence[float],
        over: str,
        **bounds: float,
    ) -> "Evidence":
        """The mean of values that were measured apart; NaN ones are left out."""
        flat = xr.DataArray(np.asarray(values, dtype="float64"), dims="each")
        flat = flat.dropna("each")
        low, high = bootstrap_interval(flat, "each").values
        n = f"{flat.size} {over}"
        return cls(what, unit, float(flat.mean()), float(low), float(high), n, **bounds)

    @classmethod
    def of(
        cls,
        what: str,
        unit: str,
        statistic: Callable[[np.ndarray], float],
        n: int,
        over: str,
        **bounds: float,
    ) -> "Evidence":
        """A statistic of `n` measurements, of which it is given the indices."""
        low, high = statistic_interval(statistic, n)
        value = float(statistic(np.arange(n)))
        return cls(what, unit, value, low, high, f"{n} {over}", **bounds)

    @property
    def agrees(self) -> bool | None:
        """Whether the interval lies in the claimed range; None if it crosses its edge.

        Without an interval the value alone decides nothing.
        """
        least = -np.inf if self.least is None else self.least
        most = np.inf if self.most is None else self.most
        if least <= self.low and self.high <= most:
            return True
        return False if self.high < least or self.low > most else None


@dataclass(frozen=True)
class Claim(ABC):
    """Something that was published; its fields say how much is measured.

    A subclass states the class variables and writes `measure`.
    """

    name: ClassVar[str]
    """In the registry and in settings."""
    statement: ClassVar[str]
    """The claim, in one sentence."""
    published: ClassVar[str]
    """The paper's figures."""
    source: ClassVar[str]
    """The paper."""
    method: ClassVar[str]
    """What is measured here, and where that differs from the paper."""

    @abstractmethod
    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Runs the model.

        Args:
            model: As `interp.load` returns it.
            folder: Where runs are kept that others or a next call can use.
            progress: Told of every step.

        Returns:
            Every quantity that the claim says something of.

        Raises:
            InputError: The model cannot be asked: it fails the task, or has no room.
            UnsupportedModelError: It is of the wrong kind.
        """


def verdict(evidence: Sequence[Evidence]) -> str:
    """What the evidence makes of a claim.

    It holds if every quantity agrees, in part if some do. Where none does, it does not
    hold here if all disagree; else nothing is decided: it cannot be tested here.
    """
    found = [each.agrees for each in evidence]
    if found and all(found):
        return HOLDS
    if any(found):
        return IN_PART
    return FAILS if found and None not in found else UNTESTED


def told(progress: Progress | None, step: str, done: int, total: int) -> None:
    """Tells of a step, if anybody listens."""
    if progress is not None:
        progress(step, done, total)


def plain(options: Any) -> Any:
    """Options as JSON has them."""
    return list(options) if isinstance(options, tuple) else options
