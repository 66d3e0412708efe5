"""What an experiment is: a quantity of every head that takes runs of the model."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import xarray as xr

from interp.probes.reading import Bootstrap

if TYPE_CHECKING:
    from interp.models import Model

Progress = Callable[[str, int, int], None]
"""Called with what is run, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Experiment(ABC):
    """One measured quantity of every head; its fields are options.

    A `Detector` reads a trace that is there; an experiment runs the model itself: it
    decodes, masks heads, trains gates. A subclass states the class variables and
    writes `run`.
    """

    name: ClassVar[str]
    """Key in the registry, in results and in tables."""
    unit: ClassVar[str]
    """Unit of the values, "fraction" for a share between 0 and 1."""
    long_name: ClassVar[str]
    """Axis title."""
    description: ClassVar[str]
    """One sentence on how to read the number."""
    source: ClassVar[str] = ""
    """Paper and section, and where this differs."""
    by_default: ClassVar[bool] = False
    """Whether an atlas runs it unasked."""

    @abstractmethod
    def run(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        bootstrap: Bootstrap | None = None,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """Runs the model and measures.

        Args:
            model: As `interp.load` returns it.
            folder: Where it keeps what makes it resumable; None keeps nothing.
            bootstrap: How intervals are made.
            progress: Told of every run.

        Returns:
            `<name>` (layer, head), with a coordinate `kv_head`; where there are
            several runs `<name>_interval` (layer, head, bound) and `<name>_runs`
            (`<name>_run`, layer, head); and what else there is to say.

        Raises:
            InputError: The model cannot answer: it fails the task, or has no room.
            UnsupportedModelError: The model is of the wrong kind.
        """

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """`values` under the experiment's name, with unit, source and options."""
        options = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return (
            values.rename(self.name)
            .drop_attrs(deep=False)
            .assign_attrs(
                units=self.unit,
                long_name=self.long_name,
                source=self.source,
                description=self.description,
                **options,
            )
        )


def _plain(option: object) -> str | int | float:
    """An option as a store can keep it."""
    return option if isinstance(option, str | int | float) else repr(option)
