"""Cells of the residual stream set or scaled, and the stream steered."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp import hooks
from interp.activations import record
from interp.anatomy import Anatomy
from interp.errors import InputError
from interp.interventions.edges import Tokens, is_of
from interp.interventions.intervention import Intervention
from interp.interventions.positions import Frame
from interp.models import Model

Cell = tuple[int, int, int]
"""Layer, place of the token in its text, channel; layers as in a trace's `residual`
node: 0 is the embedding, l the stream after block l - 1."""

Change = Callable[
    [Float[Tensor, "batch token d_model"], Int[Tensor, "batch token"]], None
]
"""Changes a stream in place, given the place of each token in its text."""


@dataclass(frozen=True)
class SetActivations(Intervention):
    """Cells of the residual stream set to values, or multiplied by a factor.

    Everything else is left alone. Massive activations set to zero break a model; set
    to their mean over other texts they hardly change it.

    Source: Sun et al. 2024 (arXiv:2402.17762), set_zero and set_mean.

    Attributes:
        cells: Which.
        values: One for each cell (`mean_activations`), or one for all.
        factor: Instead of values.
    """

    cells: tuple[Cell, ...]
    values: tuple[float, ...] | float = 0.0
    factor: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that do not fit the cells."""
        values = self.values
        if isinstance(values, tuple) and len(values) != len(self.cells):
            raise InputError(
                f"{len(self.cells)} cells were to be set; got {len(values)} values. "
                "Give one for each, or one for all."
            )
        if not self.cells:
            raise InputError("Activations of no cell were to be set. Name one.")

    def check(self, anatomy: Anatomy) -> None:
        """Refuses cells that the model has not."""
        for layer, token, channel in self.cells:
            check_layer(layer, anatomy)
            if token < 0 or not 0 <= channel < anatomy.d_model:
                raise InputError(
                    f"The cell (token {token}, channel {channel}) was asked for; "
                    f"tokens count from 0, channels go to {anatomy.d_model - 1}. "
                    "Choose one within them."
                )

    def first_block(self, anatomy: Anatomy) -> int:
        """The block that gives the first changed stream."""
        return max(min(layer for layer, _, _ in self.cells) - 1, 0)

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """One hook for each layer that has a cell."""
        values = self.values
        values = values if isinstance(values, tuple) else (values,) * len(self.cells)
        layers: dict[int, list[tuple[int, int, float]]] = {}
        for (layer, token, channel), value in zip(self.cells, values, strict=True):
            layers.setdefault(layer, []).append((token, channel, value))

        def change_of(cells: list[tuple[int, int, float]]) -> Change:
            def change(stream: Tensor, place: Tensor) -> None:
                for token, channel, value in cells:
                    column = stream[..., channel]
                    new = column * self.factor if self.factor is not None else value
                    stream[..., channel] = torch.where(place == token, new, column)

            return change

        changes = {layer: change_of(cells) for layer, cells in layers.items()}
        return stream_hooks(module, anatomy, changes)


@dataclass(frozen=True, eq=False)
class Steer(Intervention):
    """A direction added to the residual stream.

    Source: activation addition (Turner et al. 2023, arXiv:2308.10248).

    Attributes:
        direction: `[d_model]`.
        layer: Of the stream, 0 for the embedding, l for after block l - 1.
        scale: Times the direction.
        tokens: Places of the tokens to steer; None for all.
    """

    direction: Float[Tensor, " d_model"]
    layer: int
    scale: float = 1.0
    tokens: Tokens = None

    def check(self, anatomy: Anatomy) -> None:
        """Refuses a layer or a width that the model has not."""
        check_layer(self.layer, anatomy)
        shape = tuple(self.direction.shape)
        if shape != (anatomy.d_model,) or not math.isfinite(self.scale):
            raise InputError(
                f"A direction of shape ({anatomy.d_model},) and a finite scale are "
                f"needed; got {shape} and {self.scale}. Take both from this model."
            )

    def first_block(self, anatomy: Anatomy) -> int:
        """The block that gives the steered stream."""
        return max(self.layer - 1, 0)

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """One hook on the stream."""

        def change(stream: Tensor, place: Tensor) -> None:
            steered = is_of(place, self.tokens) & (place >= 0)
            stream.add_(steered[..., None] * (self.scale * self.direction).to(stream))

        return stream_hooks(module, anatomy, {self.layer: change})


def stream_hooks(
    module: nn.Module,
    anatomy: Anatomy,
    changes: dict[int, Change],
    part: str = "stream",
) -> list[AbstractContextManager[None]]:
    """Contexts that change the decoder's residual stream, or the only one there is.

    Args:
        module: The model.
        anatomy: Its anatomy.
        changes: By layer of the stream, or by block where `part` is a half of one.
        part: `stream`, or what the `attention` or the `mlp` of a block writes to it.
    """
    site = "self" if "self" in anatomy.site_names else "encoder"
    frame = Frame(module, site)
    blocks = hooks.blocks(module, anatomy, site)

    def hook_of(change: Change) -> hooks.Hook:
        def hook(stream: Tensor) -> Tensor:
            changed = stream.clone()
            tokens = frame.by_sample(changed)
            change(tokens, frame.places(tokens))
            return changed

        return hook

    found: list[AbstractContextManager[None]] = [frame.watching()]
    for layer, change in changes.items():
        hook = hook_of(change)
        if part != "stream":
            writer = hooks.writer(module, anatomy, blocks[layer], part)
            found.append(hooks.on_output(writer, hook))
        elif layer == 0:
            found.append(hooks.on_input(blocks[0], hook))
        else:
            found.append(hooks.on_output(blocks[layer - 1], hook))
    return found


def check_layer(layer: int, anatomy: Anatomy, part: str = "stream") -> None:
    """Refuses a layer of the stream, or a block, that there is not.

    Args:
        layer: Of the stream, or a block's where `part` is a half of one.
        anatomy: The model's.
        part: As `stream_hooks` takes it.

    Raises:
        InputError: With those that there are.
    """
    is_stream = part == "stream"
    last = anatomy.n_layers if is_stream else anatomy.n_layers - 1
    if not 0 <= layer <= last:
        asked = "the residual stream" if is_stream else f"the blocks' {part}"
        first = "0 (the embedding)" if is_stream else "0"
        raise InputError(
            f"Layer {layer} of {asked} was asked for; there are {first} to {last}. "
            "Choose one of them."
        )


def mean_activations(
    model: Model, inputs: Iterable[Any], cells: Sequence[Cell]
) -> tuple[float, ...]:
    """Mean of each cell over texts, for `SetActivations`.

    Args:
        model: Whose.
        inputs: Texts, or lists of token ids; each long enough for every cell's token.
        cells: Which.

    Raises:
        InputError: There is no text, or one has not the tokens.
    """
    found = []
    for each in inputs:
        stream: Any = record(model, each, ("stream",))["residual"]["stream"]
        last = max(token for _, token, _ in cells)
        if last >= stream.sizes["token"]:
            raise InputError(
                f"The mean of token {last} was asked for; a text has "
                f"{stream.sizes['token']} tokens. Leave that text out."
            )
        found.append([float(stream[cell]) for cell in cells])
    if not found:
        raise InputError("Means need at least one text; got none. Pass some texts.")
    return tuple(torch.tensor(found, dtype=torch.float64).mean(0).tolist())
