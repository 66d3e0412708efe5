"""Single weights of the model set to zero, and put back."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from interp.anatomy import Anatomy
from interp.errors import InputError
from interp.interventions.intervention import Intervention
from interp.neurons import DownProjection, down_projection

Weight = tuple[int, int, int]
"""Block, channel of the stream, and the neuron of the block's MLP that writes to it."""


@dataclass(frozen=True)
class ZeroWeights(Intervention):
    """Single weights of down projections set to zero.

    Everything else of the neuron and of the channel is left alone. One such weight can
    break a model, where a thousand others do nothing.

    Source: super weights (Yu et al. 2024, arXiv:2411.07191).

    Attributes:
        entries: Which, by block, channel and neuron.
    """

    entries: tuple[Weight, ...]

    def __post_init__(self) -> None:
        """Refuse none, and one that is named twice."""
        if not self.entries or len(set(self.entries)) < len(self.entries):
            raise InputError(
                f"Weights were to be set to zero; got {self.entries}. Name at least "
                "one (block, channel, neuron), and none twice."
            )

    def first_block(self, anatomy: Anatomy) -> int:
        """The first block whose MLP is changed."""
        return min(block for block, _, _ in self.entries)

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """One context for each matrix.

        Raises:
            InputError: The model has no such weight.
            UnsupportedModelError: A block's MLP has no single down projection.
        """
        by_block: dict[int, list[tuple[int, int]]] = {}
        for block, channel, neuron in self.entries:
            by_block.setdefault(block, []).append((channel, neuron))
        return [
            _zeroed(down_projection(module, anatomy, block), places)
            for block, places in by_block.items()
        ]


@contextmanager
def _zeroed(
    projection: DownProjection, places: Sequence[tuple[int, int]]
) -> Iterator[None]:
    """Puts a copy of the matrix in its place, with zeros at some places.

    A copy, since other modules that run meanwhile may share the matrix itself.
    """
    module, own = projection.module, projection.module.get_parameter("weight")
    for channel, neuron in places:
        projection.require(channel, neuron)
    module.weight = nn.Parameter(own.detach().clone(), own.requires_grad)
    try:
        with torch.no_grad():
            for channel, neuron in places:
                projection.weight[channel, neuron] = 0
        yield
    finally:
        module.weight = own
