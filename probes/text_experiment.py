"""What an experiment on a text is: runs of the model on what an atlas reads."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import xarray as xr

from interp.errors import InterpError
from interp.probes.experiment import Progress
from interp.probes.reading import Bootstrap
from interp.probes.tokens import of_tokens

if TYPE_CHECKING:
    from interp.models import Model


@dataclass(frozen=True)
class TextExperiment(ABC):
    """What runs of the model on a text tell, of its tokens or of the model.

    A `Detector` reads a trace, and an `Experiment` measures heads on inputs of its own;
    this needs the model and the text. A subclass states the class variables and writes
    `__call__`, and `over_texts` if what it tells is not of tokens.
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
    def __call__(
        self, model: "Model", inputs: Any, *, max_tokens: int | None = None
    ) -> Any:
        """What one text gives.

        Args:
            model: As `interp.load` returns it.
            inputs: One text, or its token ids.
            max_tokens: Keep at most this many tokens.

        Raises:
            InputError: The text does not suit.
            UnsupportedModelError: The model is of the wrong kind.
        """

    def over_texts(
        self, found: Mapping[str, Any], bootstrap: Bootstrap
    ) -> dict[str, xr.Dataset]:
        """What an atlas keeps, by the node's name.

        Args:
            found: What each text gave, by its node's name.
            bootstrap: How intervals are made.

        Returns:
            For each text its values over (layer, token), means over heads; or what a
            subclass makes of all texts together, in a node of the experiment's name.

        Raises:
            InputError: There is nothing to tell.
        """
        return {
            key: _bare(of_tokens(values)).to_dataset(name=self.name)
            for key, values in found.items()
        }


def on_texts(
    experiments: Iterable[TextExperiment],
    model: "Model",
    texts: Mapping[str, tuple[str, Any]],
    *,
    max_tokens: int | None,
    bootstrap: Bootstrap,
    progress: Progress | None = None,
) -> tuple[dict[str, xr.Dataset], dict[str, str]]:
    """Run experiments on every text.

    Args:
        experiments: What is run, one after the other.
        model: As `interp.load` returns it.
        texts: Name and inputs of each text, by its node's name.
        max_tokens: Keep at most this many tokens of each text.
        bootstrap: How intervals are made.
        progress: Told of every text.

    Returns:
        What is kept, by the node's name; and why an experiment, by its own, has
        nothing to tell, or nothing of some text.
    """
    nodes: dict[str, xr.Dataset] = {}
    skipped: dict[str, str] = {}
    for each in experiments:
        found = {}
        for done, (key, (name, inputs)) in enumerate(texts.items()):
            if progress is not None:
                progress(each.name, done, len(texts))
            try:
                found[key] = each(model, inputs, max_tokens=max_tokens)
            except InterpError as error:
                where = f"{name}: " if len(texts) > 1 else ""
                skipped.setdefault(each.name, f"{where}{error}")
        if progress is not None:
            progress(each.name, len(texts), len(texts))
        try:
            told = each.over_texts(found, bootstrap) if found else {}
        except InterpError as error:
            skipped.setdefault(each.name, str(error))
            continue
        for key, node in told.items():
            nodes[key] = nodes[key].merge(node) if key in nodes else node
    return nodes, skipped


def _bare(values: xr.DataArray) -> xr.DataArray:
    """Without coordinates that name what is averaged, or what the node has."""
    return values.drop_vars(set(values.coords) - set(values.dims))
