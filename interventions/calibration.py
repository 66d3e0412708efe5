"""ACT: intermediate sinks calibrated, head by head."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

from interp.anatomy import Site
from interp.errors import InputError
from interp.heads import HeadId, HeadSet
from interp.interventions.edges import own_heads
from interp.interventions.intervention import Intervention, heads_at
from interp.kernels import statistics
from interp.kernels.definitions import Received
from interp.kernels.edits import Block, Edit
from interp.kernels.rules import AttentionCall
from interp.models import Model

MIN_QUERIES = 8
"""Queries that must see a key before it can be a sink: late keys have few."""


@dataclass(frozen=True, eq=False)
class CalibrateSinks(Intervention):
    """Sinks other than the first token lose weight to everything else in their rows.

    A key is a sink where the mean weight that it gets from the queries that see it is
    above the threshold. The sinks' weights are multiplied by `beta`, and what becomes
    free goes to the other keys of the row, the first token included, in proportion.
    Applied where several queries come at once: column means of a single decoded row
    mean nothing.

    Source: ACT (arXiv:2406.15765). The released code passes over the first sink that
    it finds, whichever it is; here it is the first token that is passed over.

    Attributes:
        heads: Which heads.
        beta: Factor on the sinks, in [0, 1].
        threshold: Mean weight above which a key is a sink (0.1 in the code); None
            takes `multiple / keys` (5 of {3, 5, 7} in the paper).
        multiple: See `threshold`.
    """

    heads: HeadSet
    beta: float = 0.4
    threshold: float | None = 0.1
    multiple: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a factor beyond [0, 1]."""
        if not 0 <= self.beta <= 1:
            raise InputError(
                f"beta is a fraction in [0, 1]; got {self.beta}. ACT uses 0.4."
            )

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """The calibration of the sinks found in this call."""
        heads = heads_at(self.heads, site)
        if not heads or call.mask.query_length == 1:
            return ()
        sinks = self.sinks(call)
        return (_Calibrated(tuple(heads), sinks, self.beta),)

    def sinks(self, call: AttentionCall) -> Bool[Tensor, "batch head key"]:
        """Which keys are intermediate sinks of which head."""
        received = statistics.compute(call, [Received()])["received"]
        least = self.threshold
        least = self.multiple / call.mask.key_length if least is None else least
        sinks = received > least
        for sample, queries, keys in call.samples():
            own = call.mask.narrow(sample, queries, keys)
            counts = own.queries_per_key()[0].to(received.device)
            sinks[sample, :, keys] &= counts >= MIN_QUERIES
            first = keys.start + own.start - own.key_offset
            if first >= 0:
                sinks[sample, :, first] = False
        return sinks


@dataclass(frozen=True, eq=False)
class _Calibrated(Edit):
    heads: tuple[int, ...]
    sinks: Bool[Tensor, "batch head key"]
    beta: float

    hides = False

    def narrow(self, sample: int, queries: slice, keys: slice) -> "Edit":
        one = self.sinks[sample : sample + 1, :, keys]
        return _Calibrated(self.heads, one, self.beta)

    def change_weights(self, weights: Tensor, block: Block) -> None:
        """Scales sinks down and all else up; a row of nothing but sinks stays."""
        _, _, k0, k1 = block.box
        for head in own_heads(self.heads, block):
            sinks = self.sinks[0, block.heads.start + head, k0:k1]
            row = weights[head]
            on_sinks = (row * sinks).sum(-1, keepdim=True)
            others = (row * ~sinks).sum(-1, keepdim=True)
            has_others = others > 0
            freed = (1 - self.beta) * on_sinks / others.where(has_others, 1)
            factor = torch.where(sinks, self.beta, 1 + freed)
            row.mul_(factor.where(has_others, 1))


def search_heads(
    model: Model,
    measure: Callable[[], float],
    candidates: Iterable[HeadId] | None = None,
    *,
    intervention: Callable[[HeadSet], Intervention] = CalibrateSinks,
    progress: Callable[[int, int], None] | None = None,
) -> xr.DataArray:
    """ACT's offline search: what calibrating each head alone does to a measure.

    Args:
        model: Whose heads.
        measure: Higher is better, such as accuracy on held-out items; run with the
            model under each intervention.
        candidates: Heads to try; by default those of layers 2 to L - 2, as ACT's.
        intervention: Made of a set of one head.
        progress: Called with the heads done and all heads.

    Returns:
        `(layer, head)`: measure minus that of the untouched model, NaN where not
        tried. Heads above 0 are those to keep.

    Source: ACT (arXiv:2406.15765).
    """
    grid = HeadSet.of([], model.anatomy).grid
    if candidates is None:
        inner = range(2, grid.n_layers - 1)
        candidates = [h for h in grid if h.layer in inner]
    tried = list(candidates)
    base = measure()
    values = torch.full((grid.n_layers, grid.n_heads), torch.nan, dtype=torch.float64)
    for done, head in enumerate(tried, 1):
        with intervention(HeadSet.of([head], grid))(model):
            values[head.layer, head.head] = measure() - base
        if progress is not None:
            progress(done, len(tried))
    coords = {
        "layer": np.arange(grid.n_layers),
        "head": np.arange(grid.n_heads),
        "kv_head": ("head", np.arange(grid.n_heads) // grid.group),
    }
    attrs = {"base": base, "site": grid.site, "long_name": "change of the measure"}
    return xr.DataArray(
        values.numpy(), dims=("layer", "head"), coords=coords, attrs=attrs
    )
