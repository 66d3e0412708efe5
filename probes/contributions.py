"""What the blocks of a model, and the neurons in them, add to cells of the stream.

A cell is a token and a channel. An MLP adds `sum_j activation_j * weight[channel, j]`
to it, over its neurons j, and a bias; where a norm stands between the MLP and the
stream (Gemma, OLMo), that norm's factor at the cell times it.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp import hooks
from interp.errors import InputError, UnsupportedModelError
from interp.forward import evaluating, lean
from interp.inputs import prepare
from interp.neurons import DownProjection, down_projection, stream_site

if TYPE_CHECKING:
    from interp.models import Model

HALVES = ("attention", "mlp")

ROUNDINGS = 16
"""Steps of rounding within which the parts of a block have to add up."""


def cell_writes(
    model: "Model",
    inputs: Any,
    cells: Sequence[tuple[int, int]],
    *,
    max_tokens: int | None = None,
) -> xr.Dataset:
    """What each half of each block adds to cells of the residual stream.

    Args:
        model: As `interp.load` returns it.
        inputs: One text, or its token ids.
        cells: Token and channel of each.
        max_tokens: Keep at most this many tokens.

    Returns:
        `stream` (cell, layer_residual), where 0 is the embedding; `written` (cell,
        half, block), of `attention` and `mlp`, which adds up to the stream's change;
        `token` and `channel` as coordinates. All float64, in the stream's own unit.

    Raises:
        InputError: Several texts, no cell, or one that the text or model has not.
        UnsupportedModelError: A block does more than add its halves to the stream.
    """
    look = Look(model, inputs, [token for token, _ in cells], max_tokens)
    streams = np.stack([look.stream(*cell) for cell in cells])
    written = np.stack([look.written(*cell) for cell in cells])
    unit = {"units": "activation"}
    return xr.Dataset(
        {
            "stream": (("cell", "layer_residual"), streams, unit),
            "written": (("cell", "half", "block"), written, unit),
        },
        coords={
            "half": np.array(HALVES, dtype=object),
            "token": ("cell", [token for token, _ in cells]),
            "channel": ("cell", [channel for _, channel in cells]),
        },
    )


def neuron_writes(
    model: "Model",
    inputs: Any,
    block: int,
    cell: tuple[int, int],
    *,
    max_tokens: int | None = None,
) -> xr.Dataset:
    """What each neuron of one block's MLP adds to a cell of the residual stream.

    Args:
        model: As `interp.load` returns it.
        inputs: One text, or its token ids.
        block: Whose MLP.
        cell: Token and channel.
        max_tokens: Keep at most this many tokens.

    Returns:
        As `Look.neurons`.

    Raises:
        InputError: Several texts, or a block or cell that there is not.
        UnsupportedModelError: The MLP has no single down projection, or a block does
            more than add its halves to the stream.
    """
    return Look(model, inputs, [cell[0]], max_tokens).neurons(block, *cell)


class Look:
    """One forward, and what every block did in it at some tokens of one text."""

    def __init__(
        self,
        model: "Model",
        inputs: Any,
        tokens: Sequence[int],
        max_tokens: int | None = None,
    ) -> None:
        self.model, self.tokens = model, sorted(set(tokens))
        model.anatomy.require_attention()
        prepared = prepare(model, inputs, max_tokens)
        ids = prepared.decoder.ids
        ids = prepared.encoder.ids if ids is None else ids
        if ids is None or len(ids) != 1:
            came = "no token ids" if ids is None else f"{len(ids)} texts"
            raise InputError(
                f"Cells of one text are looked at; got {came}. Pass one text, or its "
                "token ids."
            )
        n_tokens = ids.shape[1]
        if not tokens or not 0 <= self.tokens[0] <= self.tokens[-1] < n_tokens:
            raise InputError(
                f"The tokens {self.tokens} were to be looked at; the text has 0 to "
                f"{n_tokens - 1}. Name at least one of them."
            )
        module, anatomy = model.module, model.anatomy
        blocks = hooks.blocks(module, anatomy, stream_site(anatomy))
        owners = [module.get_submodule(site.module_name) for site in anatomy.sites]
        self.parts: list[dict[str, Tensor]] = [{} for _ in blocks]
        self.is_normed = [False] * len(blocks)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(module))
            for index, block in enumerate(blocks):
                inside = set(block.modules())
                own = [owner for owner in owners if owner in inside]
                attention, mlp = hooks.halves(block, own)
                stack.enter_context(hooks.on_input(block, self._keep(index, "before")))
                stack.enter_context(hooks.on_output(block, self._keep(index, "after")))
                for each in attention:
                    keep = self._keep(index, "attention")
                    stack.enter_context(hooks.on_output(each, keep))
                if mlp is not None:
                    stack.enter_context(hooks.on_output(mlp, self._keep(index, "mlp")))
                with suppress(UnsupportedModelError):  # other blocks have neurons
                    down = self.projection(index).module
                    self.is_normed[index] = mlp is None or down not in mlp.modules()
                    keep = self._keep(index, "activation")
                    stack.enter_context(hooks.on_input(down, keep))
                    keep = self._keep(index, "projected")
                    stack.enter_context(hooks.on_output(down, keep))
            module(**prepared.forward, **lean(module))

    def stream(self, token: int, channel: int) -> np.ndarray:
        """The cell after every block, the embedding first."""
        cells = [self._cell(0, "before", token, channel)]
        cells += [
            self._cell(index, "after", token, channel)
            for index in range(len(self.parts))
        ]
        return np.array(cells)

    def written(self, token: int, channel: int) -> np.ndarray:
        """What each half of each block adds to the cell, `[half, block]`.

        Raises:
            UnsupportedModelError: A block does more than add its halves.
        """
        written = np.empty((len(HALVES), len(self.parts)))
        eps = torch.finfo(self.model.dtype).eps
        for index, parts in enumerate(self.parts):
            at = {name: self._cell(index, name, token, channel) for name in parts}
            cells = [at.get(name, np.nan) for name in ("before", *HALVES)]
            size = sum(map(abs, cells))
            if not abs(sum(cells) - at["after"]) <= ROUNDINGS * eps * size:
                raise UnsupportedModelError(
                    f"What the halves of block {index} write was asked for; its "
                    f"attention and MLP do not add up to what it does to token {token},"
                    f" channel {channel}. Choose a model whose blocks only add the two "
                    "to the stream, such as Llama, Gemma, GPT-2 or OPT."
                )
            written[:, index] = cells[1:]
        return written

    def neurons(self, block: int, token: int, channel: int) -> xr.Dataset:
        """What each neuron of a block's MLP adds to the cell.

        Returns:
            Over `neuron`: `activation`, `weight` to the channel, and `contribution`,
            their product, times the norm's factor where there is one; float64. Attrs:
            `written`, what the MLP added in all, and `bias`, the part of it that no
            neuron wrote.

        Raises:
            InputError: There is no such block or channel.
            UnsupportedModelError: The MLP has no single down projection, or does more
                with its output than normalize it.
        """
        projection = self.projection(block)
        written = self.written(token, channel)[1, block]
        projected = self._cell(block, "projected", token, channel)
        factor = written / projected if self.is_normed[block] else 1.0
        eps = torch.finfo(self.model.dtype).eps
        if not abs(factor * projected - written) <= ROUNDINGS * eps * abs(written):
            raise UnsupportedModelError(
                f"The neurons of block {block} were asked for; its MLP does more than "
                f"{projection.name} with what they do. Choose a block whose MLP ends "
                "with its down projection."
            )
        row = self.tokens.index(token)
        activation = self.parts[block]["activation"][row].numpy()
        weight = projection.weight.detach()[channel].double().cpu().numpy()
        bias = projection.bias
        alone = 0.0 if bias is None else float(bias.detach()[channel])
        found = {
            "activation": ("neuron", activation),
            "weight": ("neuron", weight),
            "contribution": ("neuron", factor * activation * weight),
        }
        attrs = {"written": float(written), "bias": float(factor * alone)}
        return xr.Dataset(found, attrs=attrs)

    def projection(self, block: int) -> DownProjection:
        """The down projection of a block.

        Raises:
            InputError: There is no such block.
            UnsupportedModelError: Its MLP has none.
        """
        return down_projection(self.model.module, self.model.anatomy, block)

    def _keep(self, index: int, name: str) -> hooks.Hook:
        """Keeps the looked-at tokens of a part, added to what it gave before."""

        def keep(values: Tensor) -> None:
            rows = values.flatten(0, -2)[self.tokens].double().cpu()
            own = self.parts[index]
            own[name] = own[name] + rows if name in own else rows

        return keep

    def _cell(self, index: int, name: str, token: int, channel: int) -> float:
        values = self.parts[index][name]
        if not 0 <= channel < values.shape[1]:
            raise InputError(
                f"Channel {channel} was asked for; the stream has 0 to "
                f"{values.shape[1] - 1}. Choose one of them."
            )
        return float(values[self.tokens.index(token), channel])
