"""Sinks scaled or removed, ZeroTuning, and attention at another temperature."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.anatomy import Site
from interp.errors import InputError
from interp.heads import HeadId, HeadSet
from interp.interventions.edges import CutEdges
from interp.interventions.intervention import Intervention, heads_at
from interp.interventions.positions import keys_of
from interp.kernels.edits import Edit
from interp.kernels.reweight import Reweight
from interp.kernels.rules import AttentionCall
from interp.models import Model


@dataclass(frozen=True, eq=False)
class ScaleSinks(Intervention):
    """The weight of sink tokens times a factor, each row normalized again.

    On the weights this is `ln factor` added to the token's logit. On the key it is
    `factor` times the key vector, hence another factor for each query, `exp((factor -
    1) * logit)`: sharper and less stable. A factor of 0 on the weights removes the
    sink; rows that see nothing else keep it.

    Source: ZeroTuning (arXiv:2505.11739), with tokens=(0,).

    Attributes:
        heads: Which heads; whole KV groups where keys are scaled.
        factor: 1 changes nothing; above 1 flattens the rest of a row.
        tokens: Places of the sink tokens in each text.
        on: `weight` or `key`.
    """

    heads: HeadSet
    factor: float
    tokens: tuple[int, ...] = (0,)
    on: Literal["weight", "key"] = "weight"

    def __post_init__(self) -> None:
        """Refuse factors that mean nothing, and keys of half a group."""
        if not (math.isfinite(self.factor) and self.factor >= 0):
            raise InputError(
                f"A sink is scaled by a number from 0 on; got {self.factor}. "
                "1 leaves it."
            )
        if self.on not in ("weight", "key"):
            raise InputError(
                f"A sink is scaled on its weight or its key; got on={self.on!r}. "
                "Choose one of them."
            )
        if self.on == "key" and self.heads.as_kv_groups() != self.heads:
            raise InputError(
                f"Heads {self.heads} were to see scaled keys, which they share with "
                "other heads. Pass heads.as_kv_groups(), or scale the weight."
            )

    @property
    def uses_keys(self) -> bool:
        """Where keys are scaled."""
        return self.on == "key"

    def inputs(self, site: Site, call: AttentionCall) -> AttentionCall:
        """Scaled keys."""
        heads = heads_at(self.heads, site)
        if self.on != "key" or not heads:
            return call
        kv_heads = sorted({head // call.group_size for head in heads})
        key = call.key.clone()
        for sample, at in _places(call, self.tokens):
            for kv_head in kv_heads:
                key[sample, kv_head, at] *= self.factor
        return replace(call, key=key)

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """A bias on the logits, or the edges cut."""
        heads = heads_at(self.heads, site)
        if self.on != "weight" or not heads or self.factor == 1:
            return ()
        if self.factor == 0:
            return CutEdges(None, self.tokens, self.heads).weights(site, call)
        shape = call.n_batch, call.n_heads, call.mask.key_length
        bias = torch.zeros(shape, device=call.query.device, dtype=call.dtype)
        for sample, at in _places(call, self.tokens):
            for head in heads:
                bias[sample, head, at] = math.log(self.factor)
        return (Reweight(key_bias=bias),)


@dataclass(frozen=True, eq=False)
class Temperature(Intervention):
    """Attention logits divided by a temperature: above 1 flatter, below 1 sharper.

    Attributes:
        heads: Which heads.
        temperature: Above 0; infinity gives equal weights.
    """

    heads: HeadSet
    temperature: float

    def __post_init__(self) -> None:
        """Refuse what is no temperature."""
        if not self.temperature > 0:
            raise InputError(
                f"A temperature is above 0; got {self.temperature}. 1 changes nothing."
            )

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """A factor on the logits."""
        heads = heads_at(self.heads, site)
        if not heads or self.temperature == 1:
            return ()
        scale = torch.ones(call.n_heads, device=call.query.device, dtype=call.dtype)
        scale[heads] = 1 / self.temperature
        return (Reweight(scale=scale),)


def profile_heads(
    model: Model,
    measure: Callable[[], float],
    layers: Sequence[int],
    factors: tuple[float, float] = (0.5, 2.0),
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """ZeroTuning's profile: how a measure moves as a head index scales its sink.

    One head index at a time, in all the layers together. A head is `up` where the
    measure is better with the larger factor than with the smaller one, else `down`.

    Args:
        model: Whose heads.
        measure: Higher is better, such as an accuracy on validation items; run with
            the model under each intervention.
        layers: Where to scale.
        factors: Below 1 and above 1; the demo of the method uses 0.5 and 2.
        progress: Called with the runs done and all runs.

    Returns:
        `change (head, factor)`: measure under the factor minus the untouched one;
        `up (head)`.

    Source: ZeroTuning (arXiv:2505.11739), exploring mode.
    """
    grid_heads = model.anatomy.at("self")[0].n_heads
    base = measure()
    change = np.full((grid_heads, 2), np.nan)
    for head in range(grid_heads):
        ids = [HeadId(layer, head) for layer in layers]
        heads = HeadSet.of(ids, model.anatomy)
        for index, factor in enumerate(factors):
            with ScaleSinks(heads, factor)(model):
                change[head, index] = measure() - base
            if progress is not None:
                progress(2 * head + index + 1, 2 * grid_heads)
    coords = {"head": np.arange(grid_heads), "factor": list(factors)}
    values = xr.DataArray(change, dims=("head", "factor"), coords=coords)
    up = values.isel(factor=1) > values.isel(factor=0)
    return xr.Dataset(
        {"change": values, "up": up.drop_vars("factor")}, attrs={"base": base}
    )


def _places(call: AttentionCall, tokens: Sequence[int]) -> list[tuple[int, Tensor]]:
    """Key indices of the tokens in each sample, those that the call has."""
    found = []
    wanted = torch.tensor(tokens)
    for sample, keys, place in keys_of(call):
        is_one = torch.isin(place, wanted.to(place.device))
        found.append((sample, keys.start + is_one.nonzero().flatten()))
    return found
